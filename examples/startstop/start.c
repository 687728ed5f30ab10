// SPDX-License-Identifier: GPL-2.0
/* The half of the module that is there when it starts. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/printk.h>

#include "startstop.h"

unsigned long startstop_since;

static int __init startstop_init(void)
{
	startstop_since = jiffies;
	pr_info("started\n");
	return 0;
}

module_init(startstop_init);

MODULE_DESCRIPTION("One module of two files");
MODULE_LICENSE("GPL");
