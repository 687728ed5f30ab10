// SPDX-License-Identifier: GPL-2.0
/*
 * Frees an object twice.
 *
 * Mostly nobody notices at once: the allocator gives the same memory to two owners, and something
 * else breaks later. This cache asks the allocator to check every free, as slub_debug=F does for
 * all of them.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/module.h>
#include <linux/slab.h>

struct message {
	char text[120];
};

static struct kmem_cache *messages;
static struct message *kept, *lost;

static void send(struct message *message)
{
	/* A sender that frees what it was given ... */
	kmem_cache_free(messages, message);
}

static noinline void send_and_free(struct message *message)
{
	send(message);
	/* The bug: ... and a caller that does so too. */
	kmem_cache_free(messages, message);
}

static int __init double_free_init(void)
{
	messages = kmem_cache_create("double_free", sizeof(struct message), 0,
				     SLAB_CONSISTENCY_CHECKS | SLAB_STORE_USER, NULL);
	if (!messages)
		return -ENOMEM;
	kept = kmem_cache_alloc(messages, GFP_KERNEL);
	lost = kmem_cache_alloc(messages, GFP_KERNEL);
	if (lost)
		send_and_free(lost);
	return 0;
}

static void __exit double_free_exit(void)
{
	if (kept)
		kmem_cache_free(messages, kept);
	kmem_cache_destroy(messages);
}

module_init(double_free_init);
module_exit(double_free_exit);

MODULE_DESCRIPTION("Frees an object twice");
MODULE_LICENSE("GPL");
