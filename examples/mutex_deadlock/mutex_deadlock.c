// SPDX-License-Identifier: GPL-2.0
/* Takes a mutex that it already holds. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/printk.h>

static DEFINE_MUTEX(lock);

static noinline void lock_twice(void)
{
	mutex_lock(&lock);
	mutex_lock(&lock);
	mutex_unlock(&lock);
	mutex_unlock(&lock);
}

static int __init mutex_deadlock_init(void)
{
	lock_twice();
	pr_info("a mutex was taken twice\n");
	return 0;
}

static void __exit mutex_deadlock_exit(void)
{
}

module_init(mutex_deadlock_init);
module_exit(mutex_deadlock_exit);

MODULE_DESCRIPTION("Waits for itself");
MODULE_LICENSE("GPL");
