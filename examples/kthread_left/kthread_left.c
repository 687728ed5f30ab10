// SPDX-License-Identifier: GPL-2.0
/* Leaves a kernel thread running when it is unloaded. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/err.h>
#include <linux/init.h>
#include <linux/kthread.h>
#include <linux/module.h>

static noinline int watch(void *unused)
{
	for (;;)
		msleep(200);
	return 0;
}

static int __init kthread_left_init(void)
{
	return PTR_ERR_OR_ZERO(kthread_run(watch, NULL, "kthread_left"));
}

static void __exit kthread_left_exit(void)
{
	/* The bug: kthread_stop() is missing, and watch() never asks kthread_should_stop(). */
}

module_init(kthread_left_init);
module_exit(kthread_left_exit);

MODULE_DESCRIPTION("A thread that outlives its module");
MODULE_LICENSE("GPL");
