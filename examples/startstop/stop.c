// SPDX-License-Identifier: GPL-2.0
/* The half of the module that is there when it stops. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/printk.h>

#include "startstop.h"

static void __exit startstop_exit(void)
{
	pr_info("stopped after %u ms\n", jiffies_to_msecs(jiffies - startstop_since));
}

module_exit(startstop_exit);
