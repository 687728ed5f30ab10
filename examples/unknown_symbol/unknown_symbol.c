// SPDX-License-Identifier: GPL-2.0
/* Needs a function of a module that is not there when this one is loaded. */
#include <linux/init.h>
#include <linux/module.h>

#include "absent.h"

static int __init unknown_symbol_init(void)
{
	absent_greet();
	return 0;
}

static void __exit unknown_symbol_exit(void)
{
}

module_init(unknown_symbol_init);
module_exit(unknown_symbol_exit);

MODULE_DESCRIPTION("Needs a module that is not loaded");
MODULE_LICENSE("GPL");
