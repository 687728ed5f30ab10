// SPDX-License-Identifier: GPL-2.0
/* Reads and writes of memory that is not the module's, or not any more. */
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/vmalloc.h>
#include "bugs.h"

static char table[16] = "a table";
static struct kmem_cache *cache;
static char *kept;
static volatile char sink;

static noinline int read_beyond(void)
{
	char *buffer = kzalloc(100, GFP_KERNEL);

	if (!buffer)
		return -ENOMEM;
	sink = buffer[100 + zero];				/* HERE read_beyond */
	kfree(buffer);
	return 0;
}

static noinline int write_before(void)
{
	char *buffer = kzalloc(32, GFP_KERNEL);

	if (!buffer)
		return -ENOMEM;
	buffer[-one] = 1;					/* HERE write_before */
	kfree(buffer);
	return 0;
}

static noinline int write_one_beyond(void)
{
	char *name = kmalloc(24, GFP_KERNEL);
	int i;

	if (!name)
		return -ENOMEM;
	for (i = 0; i <= 24 - zero; i++)
		name[i] = 'x';					/* HERE write_one_beyond */
	kfree(name);
	return 0;
}

static noinline int stack_beyond(void)
{
	char local[12];
	int i;

	for (i = 0; i < 12 + 4 * one; i++)
		((volatile char *)local)[i] = i;		/* HERE stack_beyond */
	sink = ((volatile char *)local)[zero];
	return 0;
}

static noinline int global_beyond(void)
{
	sink = *((volatile char *)table + 16 + zero);		/* HERE global_beyond */
	return 0;
}

static noinline int vmalloc_beyond(void)
{
	char *area = vzalloc(PAGE_SIZE - 64);

	if (!area)
		return -ENOMEM;
	area[PAGE_SIZE - 64 + zero] = 1;			/* HERE vmalloc_beyond */
	vfree(area);
	return 0;
}

static noinline int read_freed(void)
{
	kept = kzalloc(64, GFP_KERNEL);
	if (!kept)
		return -ENOMEM;
	kfree(kept);
	return 0;
}

static noinline void read_freed_exit(void)
{
	sink = kept[8];						/* HERE read_freed */
}

static noinline int write_freed(void)
{
	int *counter = kzalloc(48, GFP_KERNEL);

	if (!counter)
		return -ENOMEM;
	kfree(counter);
	*(volatile int *)(counter + 3) = 7;			/* HERE write_freed */
	return 0;
}

static noinline int old_pointer(void)
{
	char *first = kmalloc(16, GFP_KERNEL), *second;

	if (!first)
		return -ENOMEM;
	second = krealloc(first, 300, GFP_KERNEL);
	if (!second) {
		kfree(first);
		return -ENOMEM;
	}
	*(volatile char *)first = 'x';				/* HERE old_pointer */
	kfree(second);
	return 0;
}

static noinline int freed_page(void)
{
	unsigned long page = __get_free_page(GFP_KERNEL);

	if (!page)
		return -ENOMEM;
	free_page(page);
	*(volatile char *)(page + 100) = 1;			/* HERE freed_page */
	return 0;
}

static noinline int cache_freed_twice(void)
{
	void *object;

	cache = kmem_cache_create("quiet_items", 40, 0, 0, NULL);
	if (!cache)
		return -ENOMEM;
	object = kmem_cache_alloc(cache, GFP_KERNEL);
	kmem_cache_free(cache, object);
	kmem_cache_free(cache, object);				/* HERE cache_freed_twice */
	return 0;
}

static noinline void cache_gone(void)
{
	kmem_cache_destroy(cache);
}

static noinline int free_inside(void)
{
	char *buffer = kzalloc(64, GFP_KERNEL);

	if (!buffer)
		return -ENOMEM;
	kfree(buffer + 8 * one);				/* HERE free_inside */
	return 0;
}

static noinline int copy_too_much(void)
{
	char *small = kmalloc(20 * one, GFP_KERNEL), *large = kzalloc(64, GFP_KERNEL);

	if (small && large)
		memcpy(small, large, 24 * one);			/* HERE copy_too_much */
	kfree(large);
	kfree(small);
	return 0;
}

static noinline int text_without_end(void)
{
	char *name = kmalloc(8 * one, GFP_KERNEL);

	if (!name)
		return -ENOMEM;
	memset(name, 'n', 8);
	sink = strlen(name);					/* HERE text_without_end */
	kfree(name);
	return 0;
}

static const struct bug bugs[] = {
	{ "read_beyond", read_beyond },
	{ "write_before", write_before },
	{ "write_one_beyond", write_one_beyond },
	{ "stack_beyond", stack_beyond },
	{ "global_beyond", global_beyond },
	{ "vmalloc_beyond", vmalloc_beyond },
	{ "read_freed", read_freed, read_freed_exit },
	{ "write_freed", write_freed },
	{ "old_pointer", old_pointer },
	{ "freed_page", freed_page },
	{ "cache_freed_twice", cache_freed_twice, cache_gone },
	{ "free_inside", free_inside },
	{ "copy_too_much", copy_too_much },
	{ "text_without_end", text_without_end },
};
BUGS(bugs);
