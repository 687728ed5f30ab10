// SPDX-License-Identifier: GPL-2.0
/* Lives in a sub-directory and needs both modules above it. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>

#include "../multi.h"

static int __init multi_leaf_init(void)
{
	multi_base_greet("multi_leaf");
	multi_user_greet();
	return 0;
}

static void __exit multi_leaf_exit(void)
{
}

module_init(multi_leaf_init);
module_exit(multi_leaf_exit);

MODULE_DESCRIPTION("A module in a sub-directory");
MODULE_LICENSE("GPL");
