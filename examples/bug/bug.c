// SPDX-License-Identifier: GPL-2.0
/* Writing to /proc/bug runs into a BUG(). */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bug.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/proc_fs.h>

static struct proc_dir_entry *entry;

static noinline ssize_t bug_on_write(struct file *file, const char __user *buffer, size_t length,
				     loff_t *offset)
{
	BUG_ON(length);
	return 0;
}

static const struct proc_ops bug_ops = {
	.proc_write = bug_on_write,
	.proc_lseek = noop_llseek,
};

static int __init bug_init(void)
{
	entry = proc_create("bug", 0200, NULL, &bug_ops);
	return entry ? 0 : -ENOMEM;
}

static void __exit bug_exit(void)
{
	proc_remove(entry);
}

module_init(bug_init);
module_exit(bug_exit);

MODULE_DESCRIPTION("Runs into a BUG()");
MODULE_LICENSE("GPL");
