// SPDX-License-Identifier: GPL-2.0
/* Reading /proc/oops follows a pointer that was never set. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/compiler.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/proc_fs.h>

struct sensor {
	int unit;
	int value;
};

/* The bug: there is no sensor, and nobody asks. */
static struct sensor *sensor;
static struct proc_dir_entry *entry;

static noinline ssize_t null_read(struct file *file, char __user *buffer, size_t length,
				  loff_t *offset)
{
	/* READ_ONCE() lest the compiler notice that the pointer is always NULL. */
	struct sensor *found = READ_ONCE(sensor);
	char text[16];
	int used = scnprintf(text, sizeof(text), "%d\n", found->value);

	return simple_read_from_buffer(buffer, length, offset, text, used);
}

static const struct proc_ops null_ops = {
	.proc_read = null_read,
	.proc_lseek = default_llseek,
};

static int __init null_init(void)
{
	entry = proc_create("oops", 0400, NULL, &null_ops);
	return entry ? 0 : -ENOMEM;
}

static void __exit null_exit(void)
{
	proc_remove(entry);
}

module_init(null_init);
module_exit(null_exit);

MODULE_DESCRIPTION("Follows a NULL pointer");
MODULE_LICENSE("GPL");
