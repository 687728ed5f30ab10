// SPDX-License-Identifier: GPL-2.0
/* There is no MODULE_LICENSE() here, and modpost refuses to make a module of it. */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>

static int __init license_missing_init(void)
{
	pr_info("nobody will ever read this\n");
	return 0;
}

static void __exit license_missing_exit(void)
{
}

module_init(license_missing_init);
module_exit(license_missing_exit);

MODULE_DESCRIPTION("A module without a licence");
