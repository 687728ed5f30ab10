// SPDX-License-Identifier: GPL-2.0
/* Error paths of init that nobody has ever run. */
#include <linux/debugfs.h>
#include <linux/miscdevice.h>
#include <linux/fs.h>
#include "bugs.h"

static char *first, *second;
static const struct file_operations operations = { .owner = THIS_MODULE };
static struct miscdevice device = { .minor = MISC_DYNAMIC_MINOR, .name = "quiet_errors", .fops = &operations };

static noinline int leak_on_error(void)
{
	first = kmalloc(64, GFP_KERNEL);			/* HERE leak_on_error */
	if (!first)
		return -ENOMEM;
	second = kmalloc(64, GFP_KERNEL);
	if (!second)
		return -ENOMEM;
	return 0;
}

static noinline void free_both(void)
{
	kfree(second);
	kfree(first);
}

static noinline int free_twice_on_error(void)
{
	first = kmalloc(64, GFP_KERNEL);
	if (!first)
		return -ENOMEM;
	second = kmalloc(64, GFP_KERNEL);
	if (!second)
		goto fail;
	return 0;
fail:
	kfree(first);
	kfree(first);						/* HERE free_twice_on_error */
	return -ENOMEM;
}

static noinline int unchecked(void)
{
	first = kmalloc(64, GFP_KERNEL);
	*(volatile char *)first = 1;				/* HERE unchecked */
	second = NULL;
	return 0;
}

static noinline int device_kept_on_error(void)
{
	int error = misc_register(&device);

	if (error)
		return error;
	first = kmalloc(64, GFP_KERNEL);
	if (!first)
		return -ENOMEM;					/* HERE device_kept_on_error */
	return 0;
}

static noinline void device_gone(void)
{
	misc_deregister(&device);
	kfree(first);
}

static const struct bug bugs[] = {
	{ "leak_on_error", leak_on_error, free_both },
	{ "free_twice_on_error", free_twice_on_error, free_both },
	{ "unchecked", unchecked, free_both },
	{ "device_kept_on_error", device_kept_on_error, device_gone },
};
BUGS(bugs);
