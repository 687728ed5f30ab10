// SPDX-License-Identifier: GPL-2.0
/* Two tasks take the same two mutexes, in opposite orders. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/err.h>
#include <linux/init.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/mutex.h>

static DEFINE_MUTEX(accounts);
static DEFINE_MUTEX(journal);

static noinline int audit(void *unused)
{
	mutex_lock(&journal);
	msleep(300);
	mutex_lock(&accounts);
	mutex_unlock(&accounts);
	mutex_unlock(&journal);
	return 0;
}

static noinline void transfer(void)
{
	mutex_lock(&accounts);
	msleep(300);
	/* The bug: audit() takes them the other way round, and now each has what the other wants. */
	mutex_lock(&journal);
	mutex_unlock(&journal);
	mutex_unlock(&accounts);
}

static int __init abba_deadlock_init(void)
{
	struct task_struct *auditor = kthread_run(audit, NULL, "abba_audit");

	if (IS_ERR(auditor))
		return PTR_ERR(auditor);
	transfer();
	return 0;
}

static void __exit abba_deadlock_exit(void)
{
}

module_init(abba_deadlock_init);
module_exit(abba_deadlock_exit);

MODULE_DESCRIPTION("Two mutexes in two orders");
MODULE_LICENSE("GPL");
