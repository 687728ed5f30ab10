// SPDX-License-Identifier: GPL-2.0
/* Calls a function of the kernel that is declared in a header, but not exported to modules. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kallsyms.h>
#include <linux/module.h>
#include <linux/printk.h>

static int __init undefined_symbol_init(void)
{
	pr_info("jiffies is at %lx\n", kallsyms_lookup_name("jiffies"));
	return 0;
}

static void __exit undefined_symbol_exit(void)
{
}

module_init(undefined_symbol_init);
module_exit(undefined_symbol_exit);

MODULE_DESCRIPTION("Uses a function that is not exported");
MODULE_LICENSE("GPL");
