// SPDX-License-Identifier: LicenseRef-Proprietary
/* A licence that is not GPL-compatible: the module loads, and taints the kernel with P. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>

static int __init license_init(void)
{
	pr_info("loaded, and the kernel remembers it until it reboots\n");
	return 0;
}

static void __exit license_exit(void)
{
	pr_info("unloaded, the taint stays\n");
}

module_init(license_init);
module_exit(license_exit);

MODULE_DESCRIPTION("A module whose licence taints the kernel");
MODULE_LICENSE("Proprietary");
