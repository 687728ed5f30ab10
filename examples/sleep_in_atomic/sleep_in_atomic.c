// SPDX-License-Identifier: GPL-2.0
/* Sleeps while it holds a spinlock. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/spinlock.h>

static DEFINE_SPINLOCK(lock);

static noinline void sleep_holding_lock(void)
{
	/* The _bh variant counts as atomic even where the kernel does not count plain spinlocks. */
	spin_lock_bh(&lock);
	msleep(20);
	spin_unlock_bh(&lock);
}

static int __init sleep_in_atomic_init(void)
{
	sleep_holding_lock();
	pr_info("woke up again\n");
	return 0;
}

static void __exit sleep_in_atomic_exit(void)
{
}

module_init(sleep_in_atomic_init);
module_exit(sleep_in_atomic_exit);

MODULE_DESCRIPTION("Sleeps with a spinlock held");
MODULE_LICENSE("GPL");
