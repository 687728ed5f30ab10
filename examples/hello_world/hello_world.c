// SPDX-License-Identifier: GPL-2.0
/* The smallest module: init_module() and cleanup_module() are the names that the kernel calls. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/printk.h>

int init_module(void)
{
	pr_info("Here I am.\n");
	return 0;
}

void cleanup_module(void)
{
	pr_info("And off again.\n");
}

/* Where indirect branches are tracked, objtool must see that the two may be called by address. */
static const void * const entry_points[] __used = { init_module, cleanup_module };

MODULE_DESCRIPTION("The smallest module");
MODULE_LICENSE("GPL");
