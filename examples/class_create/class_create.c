// SPDX-License-Identifier: GPL-2.0
/* Makes a class of devices in the form that the kernel has since Linux 6.4; before, class_create() took the module too. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/device.h>
#include <linux/err.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>

static struct class *larvae;

static int __init larvae_init(void)
{
	larvae = class_create("larvae");
	if (IS_ERR(larvae))
		return PTR_ERR(larvae);
	pr_info("there is a class /sys/class/%s\n", larvae->name);
	return 0;
}

static void __exit larvae_exit(void)
{
	class_destroy(larvae);
}

module_init(larvae_init);
module_exit(larvae_exit);

MODULE_DESCRIPTION("A class of devices, for Linux 6.4 and newer");
MODULE_LICENSE("GPL");
