// SPDX-License-Identifier: GPL-2.0
/* A kernel thread takes the same element off a list twice. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/task.h>

struct job {
	struct list_head link;
};

static LIST_HEAD(jobs);
static struct job job;
static struct task_struct *worker;

static noinline void remove_twice(void)
{
	list_add(&job.link, &jobs);
	list_del(&job.link);
	/* The bug: the links of an element that is off the list hold poison. */
	list_del(&job.link);
}

static int work_off(void *unused)
{
	remove_twice();
	while (!kthread_should_stop())
		schedule_timeout_interruptible(HZ);
	return 0;
}

static int __init list_corruption_init(void)
{
	worker = kthread_create(work_off, NULL, "list_corruption");
	if (IS_ERR(worker))
		return PTR_ERR(worker);
	/* The thread dies of its bug, and exit still has to ask after it. */
	get_task_struct(worker);
	wake_up_process(worker);
	return 0;
}

static void __exit list_corruption_exit(void)
{
	kthread_stop(worker);
	put_task_struct(worker);
}

module_init(list_corruption_init);
module_exit(list_corruption_exit);

MODULE_DESCRIPTION("Takes an element off a list twice");
MODULE_LICENSE("GPL");
