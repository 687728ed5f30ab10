/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/* The ioctls of /dev/quiet_devices. */
#include <linux/ioctl.h>
#include <linux/types.h>

#define QUIET_SLOTS 24

struct quiet_slot {
	__u32 index;
	__s32 value;
};

#define QUIET_SET	_IOW('q', 1, struct quiet_slot)
#define QUIET_GET	_IOWR('q', 2, struct quiet_slot)
#define QUIET_CLEAR	_IO('q', 3)
