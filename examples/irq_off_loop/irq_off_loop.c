// SPDX-License-Identifier: GPL-2.0
/* Spins for ever with interrupts off. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/compiler.h>
#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/processor.h>

static bool ready;

static noinline void spin_irqs_off(void)
{
	local_irq_disable();
	while (!READ_ONCE(ready))
		cpu_relax();
	local_irq_enable();
}

static int __init irq_off_loop_init(void)
{
	pr_info("one processor less\n");
	spin_irqs_off();
	return 0;
}

static void __exit irq_off_loop_exit(void)
{
}

module_init(irq_off_loop_init);
module_exit(irq_off_loop_exit);

MODULE_DESCRIPTION("Spins for ever with interrupts off");
MODULE_LICENSE("GPL");
