// SPDX-License-Identifier: GPL-2.0
/* Takes a spinlock that it already holds. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/spinlock.h>

static DEFINE_SPINLOCK(lock);

static noinline void take_twice(void)
{
	spin_lock(&lock);
	spin_lock(&lock);
	spin_unlock(&lock);
	spin_unlock(&lock);
}

static int __init spinlock_deadlock_init(void)
{
	take_twice();
	pr_info("a spinlock was taken twice\n");
	return 0;
}

static void __exit spinlock_deadlock_exit(void)
{
}

module_init(spinlock_deadlock_init);
module_exit(spinlock_deadlock_exit);

MODULE_DESCRIPTION("Spins for itself");
MODULE_LICENSE("GPL");
