// SPDX-License-Identifier: GPL-2.0
/* A greeting in /proc: the far end of the system calls that strace shows. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/proc_fs.h>

static const char greeting[] = "hello\n";
static struct proc_dir_entry *entry;

static ssize_t greeting_read(struct file *file, char __user *buffer, size_t length, loff_t *offset)
{
	pr_info("asked for %zu bytes at %lld\n", length, *offset);
	return simple_read_from_buffer(buffer, length, offset, greeting, sizeof(greeting) - 1);
}

static const struct proc_ops greeting_ops = {
	.proc_read = greeting_read,
	.proc_lseek = default_llseek,
};

static int __init strace_init(void)
{
	entry = proc_create("greeting", 0444, NULL, &greeting_ops);
	return entry ? 0 : -ENOMEM;
}

static void __exit strace_exit(void)
{
	proc_remove(entry);
}

module_init(strace_init);
module_exit(strace_exit);

MODULE_DESCRIPTION("The kernel's side of a read()");
MODULE_LICENSE("GPL");
