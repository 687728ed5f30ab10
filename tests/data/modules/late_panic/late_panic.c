// SPDX-License-Identifier: GPL-2.0
#include <linux/kthread.h>
#include <linux/module.h>

static int late_panic_thread(void *unused)
{
	panic("too late");
	return 0;
}

static int late_panic_go(const char *value, const struct kernel_param *param)
{
	kthread_run(late_panic_thread, NULL, "late_panic");
	return 0;
}

static const struct kernel_param_ops late_panic_ops = { .set = late_panic_go };
module_param_cb(go, &late_panic_ops, NULL, 0200);

static int __init late_panic_init(void)
{
	return 0;
}

static void __exit late_panic_exit(void)
{
}

module_init(late_panic_init);
module_exit(late_panic_exit);
MODULE_DESCRIPTION("panics in a thread of its own when it is told to");
MODULE_LICENSE("GPL");
