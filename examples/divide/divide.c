// SPDX-License-Identifier: GPL-2.0
/* Divides by a parameter that is zero unless it is given. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/printk.h>

static int total = 100;
module_param(total, int, 0444);
MODULE_PARM_DESC(total, "What is shared out");

static int parts;
module_param(parts, int, 0444);
MODULE_PARM_DESC(parts, "Among how many");

static noinline int divide_by_zero(void)
{
	return total / parts;
}

static int __init divide_init(void)
{
	pr_info("each gets %d\n", divide_by_zero());
	return 0;
}

static void __exit divide_exit(void)
{
}

module_init(divide_init);
module_exit(divide_exit);

MODULE_DESCRIPTION("Divides by zero");
MODULE_LICENSE("GPL");
