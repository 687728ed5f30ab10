// SPDX-License-Identifier: GPL-2.0
/* Exit waits for something that never happens. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>

static DECLARE_COMPLETION(worker_done);

static noinline void wait_for_worker(void)
{
	/* The bug: there is no worker. */
	wait_for_completion(&worker_done);
	/* Else the wait would be a tail call, and this function not in the trace. */
	pr_info("the worker is done\n");
}

static int __init exit_hang_init(void)
{
	pr_info("so far, so good\n");
	return 0;
}

static void __exit exit_hang_exit(void)
{
	wait_for_worker();
}

module_init(exit_hang_init);
module_exit(exit_hang_exit);

MODULE_DESCRIPTION("Never finishes unloading");
MODULE_LICENSE("GPL");
