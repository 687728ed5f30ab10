// SPDX-License-Identifier: GPL-2.0
/* A device whose bug needs an argument that nobody passes. */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/uaccess.h>
#include "bugs.h"
#include "quiet_devices.h"

static DEFINE_MUTEX(lock);
static s32 *slots;

static noinline long slot_beyond(struct quiet_slot *slot)
{
	if (slot->index > QUIET_SLOTS)
		return -EINVAL;
	slots[slot->index] = slot->value;			/* HERE slot_beyond */
	return 0;
}

static long get(struct quiet_slot *slot, void __user *user)
{
	if (slot->index >= QUIET_SLOTS)
		return -EINVAL;
	slot->value = slots[slot->index];
	return copy_to_user(user, slot, sizeof(*slot)) ? -EFAULT : 0;
}

static long device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	void __user *user = (void __user *)argument;
	struct quiet_slot slot = {};
	long result = -ENOTTY;

	if (command != QUIET_CLEAR && copy_from_user(&slot, user, sizeof(slot)))
		return -EFAULT;
	mutex_lock(&lock);
	switch (command) {
	case QUIET_SET:
		result = slot_beyond(&slot);
		break;
	case QUIET_GET:
		result = get(&slot, user);
		break;
	case QUIET_CLEAR:
		memset(slots, 0, QUIET_SLOTS * sizeof(*slots));
		result = 0;
		break;
	}
	mutex_unlock(&lock);
	return result;
}

static ssize_t device_read(struct file *file, char __user *user, size_t size, loff_t *offset)
{
	return simple_read_from_buffer(user, size, offset, slots, QUIET_SLOTS * sizeof(*slots));
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.read = device_read,
	.llseek = default_llseek,
	.unlocked_ioctl = device_ioctl,
};
static struct miscdevice device = { .minor = MISC_DYNAMIC_MINOR, .name = "quiet_devices", .fops = &operations };

static int device_begins(void)
{
	int error;

	slots = kcalloc(QUIET_SLOTS, sizeof(*slots), GFP_KERNEL);
	if (!slots)
		return -ENOMEM;
	error = misc_register(&device);
	if (error)
		kfree(slots);
	return error;
}

static void device_ends(void)
{
	misc_deregister(&device);
	kfree(slots);
}

static const struct bug bugs[] = {
	{ "slot_beyond", device_begins, device_ends },
};
BUGS(bugs);
