// SPDX-License-Identifier: GPL-2.0
/* A counter that programs reset and advance with ioctl(). */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/uaccess.h>

#include "counter_ioctl.h"

static DEFINE_MUTEX(counter_lock);
static u32 counter;

static long advance(struct counter_step __user *argument)
{
	struct counter_step step;

	if (copy_from_user(&step, argument, sizeof(step)))
		return -EFAULT;
	mutex_lock(&counter_lock);
	counter += step.by;
	step.value = counter;
	mutex_unlock(&counter_lock);
	return copy_to_user(argument, &step, sizeof(step)) ? -EFAULT : 0;
}

static long counter_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	switch (command) {
	case COUNTER_RESET:
		mutex_lock(&counter_lock);
		counter = 0;
		mutex_unlock(&counter_lock);
		return 0;
	case COUNTER_STEP:
		return advance((struct counter_step __user *)argument);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations counter_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = counter_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice counter_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = KBUILD_MODNAME,
	.fops = &counter_operations,
};
module_misc_device(counter_device);

MODULE_DESCRIPTION("A counter with ioctl()");
MODULE_LICENSE("GPL");
