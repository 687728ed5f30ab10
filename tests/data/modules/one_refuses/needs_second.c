// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
int second_number(void);

static int __init needs_second_init(void)
{
	return second_number() == 2 ? 0 : -EINVAL;
}

static void __exit needs_second_exit(void)
{
}

module_init(needs_second_init);
module_exit(needs_second_exit);
MODULE_DESCRIPTION("one of several modules of a folder");
MODULE_LICENSE("GPL");
