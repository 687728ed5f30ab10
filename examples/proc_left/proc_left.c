// SPDX-License-Identifier: GPL-2.0
/* Leaves its file in /proc behind when it is unloaded. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

static noinline int show(struct seq_file *file, void *unused)
{
	seq_puts(file, "still here\n");
	return 0;
}

static int __init proc_left_init(void)
{
	return proc_create_single("proc_left", 0444, NULL, show) ? 0 : -ENOMEM;
}

static void __exit proc_left_exit(void)
{
	/* The bug: remove_proc_entry("proc_left", NULL) is missing. */
}

module_init(proc_left_init);
module_exit(proc_left_exit);

MODULE_DESCRIPTION("A file in /proc that outlives its module");
MODULE_LICENSE("GPL");
