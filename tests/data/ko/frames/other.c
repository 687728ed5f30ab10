// SPDX-License-Identifier: GPL-2.0
#include <linux/kernel.h>
#include <linux/printk.h>
#include <linux/bug.h>
#include <linux/list.h>

#include "frames.h"

static LIST_HEAD(places);

static noinline int helper(int *place)
{
	int sum = 0;
	int i;

	for (i = 0; i < 8; i++)
		sum += place[i] * i;
	if (WARN_ON_ONCE(sum < 0))
		pr_warn("frames: negative\n");
	return sum;
}

int other(int *place, int sum)
{
	struct list_head *entry = (struct list_head *)place;

	list_add(entry, &places);
	return helper(place) + sum;
}
