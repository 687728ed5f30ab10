// SPDX-License-Identifier: GPL-2.0
/* Reads what a program wrote without copy_from_user(). */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/init.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

static ssize_t write_switch(struct file *file, const char __user *text, size_t size, loff_t *offset)
{
	/* The bug: the pointer is the program's, and so is what is behind it. */
	char first = *(__force const char *)text;

	pr_info("switched %s\n", first == '1' ? "on" : "off");
	return size;
}

static const struct file_operations switch_operations = {
	.owner = THIS_MODULE,
	.write = write_switch,
};

static struct miscdevice switch_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "user_pointer",
	.fops = &switch_operations,
};

static int __init user_pointer_init(void)
{
	return misc_register(&switch_device);
}

static void __exit user_pointer_exit(void)
{
	misc_deregister(&switch_device);
}

module_init(user_pointer_init);
module_exit(user_pointer_exit);

MODULE_DESCRIPTION("Follows a pointer of a program's");
MODULE_LICENSE("GPL");
