// SPDX-License-Identifier: GPL-2.0
/* Has a function that other modules may call. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/export.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>

#include "multi.h"

void multi_base_greet(const char *who)
{
	pr_info("hello to %s\n", who);
}
EXPORT_SYMBOL_GPL(multi_base_greet);

static int __init multi_base_init(void)
{
	pr_info("first in\n");
	return 0;
}

static void __exit multi_base_exit(void)
{
	pr_info("last out\n");
}

module_init(multi_base_init);
module_exit(multi_base_exit);

MODULE_DESCRIPTION("Exports a function to other modules");
MODULE_LICENSE("GPL");
