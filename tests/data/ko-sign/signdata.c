// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>

static int __init signdata_init(void)
{
	pr_info("signdata: loaded\n");
	return 0;
}

static void __exit signdata_exit(void)
{
	pr_info("signdata: unloaded\n");
}

module_init(signdata_init);
module_exit(signdata_exit);
MODULE_DESCRIPTION("a module to sign in kmlab's tests");
MODULE_AUTHOR("kmlab");
MODULE_LICENSE("GPL");
