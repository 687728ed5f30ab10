// SPDX-License-Identifier: GPL-2.0
/* Stops the whole kernel while it is being loaded. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/printk.h>

static char *reason = "the module asked for it";
module_param(reason, charp, 0444);
MODULE_PARM_DESC(reason, "The last words");

static noinline void give_up(void)
{
	panic("%s", reason);
}

static int __init panic_init(void)
{
	pr_info("about to give up\n");
	give_up();
	return 0;
}

static void __exit panic_exit(void)
{
}

module_init(panic_init);
module_exit(panic_exit);

MODULE_DESCRIPTION("Panics at load");
MODULE_LICENSE("GPL");
