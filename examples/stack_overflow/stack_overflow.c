// SPDX-License-Identifier: GPL-2.0
/* Recurses until the kernel's stack, 16 KiB on most machines, is used up. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/compiler.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/limits.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/printk.h>

static ulong depth = ULONG_MAX;
module_param(depth, ulong, 0444);
MODULE_PARM_DESC(depth, "How many calls deep to go");

static noinline unsigned long walk_down(unsigned long level)
{
	unsigned long room[32];
	unsigned long below = 0;

	room[level % ARRAY_SIZE(room)] = level;
	/* The barriers keep the array on the stack and the recursion from becoming a loop. */
	barrier_data(room);
	if (level < depth)
		below = walk_down(level + 1);
	barrier_data(room);
	return below + room[level % ARRAY_SIZE(room)];
}

static int __init stack_overflow_init(void)
{
	pr_info("the sum is %lu\n", walk_down(0));
	return 0;
}

static void __exit stack_overflow_exit(void)
{
}

module_init(stack_overflow_init);
module_exit(stack_overflow_exit);

MODULE_DESCRIPTION("Uses up the kernel's stack");
MODULE_LICENSE("GPL");
