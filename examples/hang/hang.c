// SPDX-License-Identifier: GPL-2.0
/* Init waits for a flag that nobody sets, and lets nothing else run on its processor meanwhile. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/compiler.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/processor.h>

static bool ready;

static noinline void spin(void)
{
	preempt_disable();
	while (!READ_ONCE(ready))
		cpu_relax();
	preempt_enable();
}

static int __init hang_init(void)
{
	pr_info("waiting for a flag that nobody sets\n");
	spin();
	return 0;
}

static void __exit hang_exit(void)
{
}

module_init(hang_init);
module_exit(hang_exit);

MODULE_DESCRIPTION("Spins for ever with preemption off");
MODULE_LICENSE("GPL");
