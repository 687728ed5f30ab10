// SPDX-License-Identifier: GPL-2.0
/* Leaves a timer armed when it is unloaded. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/printk.h>
#include <linux/slab.h>
#include <linux/timer.h>

static uint delay = 1500;
module_param(delay, uint, 0444);
MODULE_PARM_DESC(delay, "Milliseconds between unload and disaster");

static struct timer_list *reminder;

static noinline void late_timer(struct timer_list *unused)
{
	pr_info("still here\n");
}

static int __init timer_after_unload_init(void)
{
	reminder = kzalloc(sizeof(*reminder), GFP_KERNEL);
	if (!reminder)
		return -ENOMEM;
	timer_setup(reminder, late_timer, 0);
	return 0;
}

static void __exit timer_after_unload_exit(void)
{
	mod_timer(reminder, jiffies + msecs_to_jiffies(delay));
	/* The bug: late_timer() will be gone when the timer is due. */
}

module_init(timer_after_unload_init);
module_exit(timer_after_unload_exit);

MODULE_DESCRIPTION("A timer that outlives its module");
MODULE_LICENSE("GPL");
