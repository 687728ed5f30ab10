// SPDX-License-Identifier: GPL-2.0
/* Has no exit function, which to the kernel means: to stay. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>

static int __init no_exit_init(void)
{
	pr_info("here to stay\n");
	return 0;
}

module_init(no_exit_init);

MODULE_DESCRIPTION("Cannot be unloaded");
MODULE_LICENSE("GPL");
