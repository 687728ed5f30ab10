/* SPDX-License-Identifier: GPL-2.0 */
/* What the module and its programs agree on. */
#ifndef COUNTER_IOCTL_H
#define COUNTER_IOCTL_H

#include <linux/ioctl.h>
#include <linux/types.h>

struct counter_step {
	__u32 by;
	__u32 value;	/* filled in by the module */
};

#define COUNTER_RESET	_IO('k', 0)
#define COUNTER_STEP	_IOWR('k', 1, struct counter_step)

#endif
