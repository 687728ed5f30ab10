// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>

static int __init serial_all_init(void)
{
	pr_info("serial_all: asked\n");
	return 0;
}

static void __exit serial_all_exit(void)
{
}

module_init(serial_all_init);
module_exit(serial_all_exit);
MODULE_DESCRIPTION("one of several modules of a folder");
MODULE_LICENSE("GPL");
