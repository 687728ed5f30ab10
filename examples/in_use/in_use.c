// SPDX-License-Identifier: GPL-2.0
/* A device that counts as a user of its module while somebody has it open. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/init.h>
#include <linux/miscdevice.h>
#include <linux/module.h>

static const struct file_operations in_use_fops = {
	/* This is what makes an open file hold the module. */
	.owner = THIS_MODULE,
	.llseek = noop_llseek,
};

static struct miscdevice in_use_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "in_use",
	.fops = &in_use_fops,
};

static int __init in_use_init(void)
{
	return misc_register(&in_use_device);
}

static void __exit in_use_exit(void)
{
	misc_deregister(&in_use_device);
}

module_init(in_use_init);
module_exit(in_use_exit);

MODULE_DESCRIPTION("Cannot be unloaded while its device is open");
MODULE_LICENSE("GPL");
