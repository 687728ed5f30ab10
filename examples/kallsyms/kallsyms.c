// SPDX-License-Identifier: GPL-2.0
/* A function and a variable to be looked for in /proc/kallsyms, the kernel's table of names. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>

/* A type of its own: 7.3's tools cannot sort the type information of a module that has none. */
static struct landmark {
	int visits;
} landmark;

static noinline void landmark_visit(void)
{
	landmark.visits++;
	pr_info("visit %d of %ps\n", landmark.visits, landmark_visit);
}

static int __init landmark_init(void)
{
	landmark_visit();
	return 0;
}

static void __exit landmark_exit(void)
{
	landmark_visit();
}

module_init(landmark_init);
module_exit(landmark_exit);

MODULE_DESCRIPTION("Names in the kernel's symbol table");
MODULE_LICENSE("GPL");
