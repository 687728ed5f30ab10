// SPDX-License-Identifier: GPL-2.0
/* Calls the function of multi_base, and exports one of its own. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/export.h>
#include <linux/init.h>
#include <linux/module.h>

#include "multi.h"

void multi_user_greet(void)
{
	multi_base_greet("a friend of multi_user");
}
EXPORT_SYMBOL_GPL(multi_user_greet);

static int __init multi_user_init(void)
{
	multi_base_greet("multi_user");
	return 0;
}

static void __exit multi_user_exit(void)
{
}

module_init(multi_user_init);
module_exit(multi_user_exit);

MODULE_DESCRIPTION("Uses a function of another module");
MODULE_LICENSE("GPL");
