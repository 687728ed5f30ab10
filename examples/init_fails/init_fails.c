// SPDX-License-Identifier: GPL-2.0
/* Init says that there is nothing for the module to do. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>

static int __init init_fails_init(void)
{
	pr_err("no such device here\n");
	return -ENODEV;
}

static void __exit init_fails_exit(void)
{
}

module_init(init_fails_init);
module_exit(init_fails_exit);

MODULE_DESCRIPTION("Init returns -ENODEV");
MODULE_LICENSE("GPL");
