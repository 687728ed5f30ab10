// SPDX-License-Identifier: GPL-2.0
/* Counts with the module, and gives it what it must refuse. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "counter_ioctl.h"

int main(void)
{
	struct counter_step step = { .by = 2 };
	int device = open("/dev/counter_ioctl", O_RDWR);

	assert(device >= 0);
	assert(ioctl(device, COUNTER_RESET) == 0);
	assert(ioctl(device, COUNTER_STEP, &step) == 0 && step.value == 2);
	assert(ioctl(device, COUNTER_STEP, &step) == 0 && step.value == 4);
	assert(ioctl(device, COUNTER_STEP, NULL) == -1 && errno == EFAULT);
	assert(ioctl(device, _IO('k', 9)) == -1 && errno == ENOTTY);
	printf("counted to %u\n", step.value);
	return 0;
}
