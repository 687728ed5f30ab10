
// SPDX-License-Identifier: GPL-2.0
/*
 * kmlab adds this to the end of lib/fault-inject.c in the kernels that it builds.
 *
 * Write N to /sys/kernel/debug/fail_nth_in_init: in the next init function of a module, the Nth call that can be made to
 * fail does fail. Then read: "0" if that happened, "K" if N is K larger than the number of such calls, "-" if no init has
 * run since. /proc/PID/fail-nth counts all of a system call instead; of insmod's more than two hundred points the
 * module's own are the last few.
 */
#include <linux/module.h>
#include <trace/events/initcall.h>

static int kmlab_fail_nth, kmlab_points_left = -1;
static struct task_struct *kmlab_task;

static void kmlab_begin_init(void *unused, initcall_t function)
{
	if (!kmlab_fail_nth || !is_module_text_address((unsigned long)function))
		return;
	kmlab_task = current;
	current->fail_nth = kmlab_fail_nth;
	kmlab_fail_nth = 0;
}

static void kmlab_end_init(void *unused, initcall_t function, int result)
{
	if (kmlab_task != current)
		return;
	kmlab_task = NULL;
	kmlab_points_left = current->fail_nth;
	current->fail_nth = 0;
}

static ssize_t kmlab_write_nth(struct file *file, const char __user *user, size_t size, loff_t *ppos)
{
	unsigned int nth;
	int error = kstrtouint_from_user(user, size, 10, &nth);

	if (error)
		return error;
	if (nth > INT_MAX)
		return -EINVAL;
	kmlab_points_left = -1;
	kmlab_fail_nth = nth;
	return size;
}

static ssize_t kmlab_read_nth(struct file *file, char __user *user, size_t size, loff_t *ppos)
{
	char text[16];
	int length = kmlab_points_left < 0 ? scnprintf(text, sizeof(text), "-\n")
					   : scnprintf(text, sizeof(text), "%d\n", kmlab_points_left);

	return simple_read_from_buffer(user, size, ppos, text, length);
}

static const struct file_operations kmlab_nth_fops = {
	.owner = THIS_MODULE,
	.read = kmlab_read_nth,
	.write = kmlab_write_nth,
	.llseek = default_llseek,
};

static int __init kmlab_fail_init(void)
{
	register_trace_initcall_start(kmlab_begin_init, NULL);
	register_trace_initcall_finish(kmlab_end_init, NULL);
	debugfs_create_file("fail_nth_in_init", 0600, NULL, NULL, &kmlab_nth_fops);
	return 0;
}
late_initcall(kmlab_fail_init);
