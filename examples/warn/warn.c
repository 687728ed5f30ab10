// SPDX-License-Identifier: GPL-2.0
/* A work item finds something that should never be, and says so with WARN_ON(). */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bug.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/workqueue.h>

static int balance = -1;
module_param(balance, int, 0444);
MODULE_PARM_DESC(balance, "Below zero is worth a warning");

static noinline void check_balance(struct work_struct *work)
{
	WARN_ON(balance < 0);
}

static DECLARE_WORK(check, check_balance);

static int __init warn_init(void)
{
	schedule_work(&check);
	return 0;
}

static void __exit warn_exit(void)
{
	flush_work(&check);
}

module_init(warn_init);
module_exit(warn_exit);

MODULE_DESCRIPTION("Warns from a workqueue");
MODULE_LICENSE("GPL");
