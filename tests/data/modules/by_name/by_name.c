// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>

MODULE_ALIAS("kmlab-by-name");
MODULE_SOFTDEP("pre: crc7");

static int __init by_name_init(void)
{
	return 0;
}

static void __exit by_name_exit(void)
{
}

module_init(by_name_init);
module_exit(by_name_exit);
MODULE_DESCRIPTION("one of several modules of a folder");
MODULE_LICENSE("GPL");
