// SPDX-License-Identifier: GPL-2.0
/* Puts a reference that it no longer has. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/refcount.h>

static refcount_t users = REFCOUNT_INIT(1);

static noinline void drop_twice(void)
{
	int puts;

	/* The bug: there is only one reference to put. */
	for (puts = 0; puts < 2; puts++)
		if (refcount_dec_and_test(&users))
			pr_info("the last user is gone\n");
}

static int __init refcount_init(void)
{
	drop_twice();
	return 0;
}

static void __exit refcount_exit(void)
{
}

module_init(refcount_init);
module_exit(refcount_exit);

MODULE_DESCRIPTION("One put too many");
MODULE_LICENSE("GPL");
