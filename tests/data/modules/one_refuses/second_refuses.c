// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
int second_number(void);
int second_number(void)
{
	return 2;
}
EXPORT_SYMBOL_GPL(second_number);

static int __init second_refuses_init(void)
{
	return -ENODEV;
}

static void __exit second_refuses_exit(void)
{
}

module_init(second_refuses_init);
module_exit(second_refuses_exit);
MODULE_DESCRIPTION("one of several modules of a folder");
MODULE_LICENSE("GPL");
