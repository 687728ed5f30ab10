// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>

static int __init first_ok_init(void)
{
	return 0;
}

static void __exit first_ok_exit(void)
{
}

module_init(first_ok_init);
module_exit(first_ok_exit);
MODULE_DESCRIPTION("one of several modules of a folder");
MODULE_LICENSE("GPL");
