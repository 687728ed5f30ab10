// SPDX-License-Identifier: GPL-2.0
/* What the C language does not define, and memory that nobody has written. */
#include "bugs.h"

enum colour { RED, GREEN };

struct packet {
	int length;
	bool valid;
	int words[4];
};

static volatile int result;

static noinline int index_beyond(void)
{
	static struct packet packet;

	packet.words[4 * one] = 1;				/* HERE index_beyond */
	return 0;
}

static noinline int shift_too_far(void)
{
	result = 1 << (32 * one);				/* HERE shift_too_far */
	return 0;
}

static noinline int neither_true_nor_false(void)
{
	struct packet packet;

	memset(&packet, 0x55, sizeof(packet));
	result = packet.valid;					/* HERE neither_true_nor_false */
	return 0;
}

static noinline int negative_index(void)
{
	static int values[4];

	values[-one] = 1;					/* HERE negative_index */
	return 0;
}

static noinline int never_written(void)
{
	int *value = kmalloc(sizeof(*value), GFP_KERNEL);

	if (!value)
		return -ENOMEM;
	if (*(volatile int *)value == 7)			/* HERE never_written */
		result = 1;
	kfree(value);
	return 0;
}

static const struct bug bugs[] = {
	{ "index_beyond", index_beyond },
	{ "shift_too_far", shift_too_far },
	{ "neither_true_nor_false", neither_true_nor_false },
	{ "negative_index", negative_index },
	{ "never_written", never_written },
};
BUGS(bugs);
