// SPDX-License-Identifier: GPL-2.0
#include <linux/kthread.h>
#include <linux/module.h>

static int late_oops_thread(void *unused)
{
	*(volatile int *)8 = 1;
	return 0;
}

static int late_oops_go(const char *value, const struct kernel_param *param)
{
	kthread_run(late_oops_thread, NULL, "late_oops");
	return 0;
}

static const struct kernel_param_ops late_oops_ops = { .set = late_oops_go };
module_param_cb(go, &late_oops_ops, NULL, 0200);

static int __init late_oops_init(void)
{
	return 0;
}

static void __exit late_oops_exit(void)
{
}

module_init(late_oops_init);
module_exit(late_oops_exit);
MODULE_DESCRIPTION("oopses in a thread of its own when it is told to");
MODULE_LICENSE("GPL");
