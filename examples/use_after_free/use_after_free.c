// SPDX-License-Identifier: GPL-2.0
/*
 * Reading /proc/use_after_free uses an object after it was freed.
 *
 * Freed memory still looks right until somebody else gets it. Here the next owner comes at once and
 * overwrites it, so the bug shows on any kernel, without KASAN or slub_debug.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/compiler.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/string.h>

struct owner {
	int id;
};

struct session {
	struct owner *owner;
	char note[120];
};

static struct owner somebody = { .id = 1000 };
static struct session *session;
static struct session *others[16];
static struct kmem_cache *sessions;
static struct proc_dir_entry *entry;

/* A cache with a constructor is never merged with another of the same size. */
static void keep_apart(void *unused)
{
}

static noinline int open_session(void)
{
	session = kmem_cache_alloc(sessions, GFP_ATOMIC);
	if (!session)
		return -ENOMEM;
	session->owner = &somebody;
	return 0;
}

static noinline void close_session(void)
{
	/* The bug: the pointer stays behind. */
	kmem_cache_free(sessions, session);
}

static noinline void reuse_the_memory(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(others); i++) {
		others[i] = kmem_cache_alloc(sessions, GFP_ATOMIC);
		if (others[i])
			memset(others[i], 0x5a, sizeof(*others[i]));
	}
}

static noinline int read_after_free(void)
{
	return READ_ONCE(session->owner)->id;
}

static ssize_t session_read(struct file *file, char __user *buffer, size_t length, loff_t *offset)
{
	char text[16];
	int used;
	int err;

	/* On one CPU, as each hands out again first what was freed on it last. */
	get_cpu();
	err = open_session();
	if (!err) {
		close_session();
		reuse_the_memory();
	}
	put_cpu();
	if (err)
		return err;
	used = scnprintf(text, sizeof(text), "%d\n", read_after_free());
	return simple_read_from_buffer(buffer, length, offset, text, used);
}

static const struct proc_ops session_ops = {
	.proc_read = session_read,
	.proc_lseek = default_llseek,
};

static int __init use_after_free_init(void)
{
	/* A cache of its own, as objects of kmalloc() may be handed out to anybody. */
	sessions = kmem_cache_create("use_after_free", sizeof(struct session), 0, 0, keep_apart);
	if (!sessions)
		return -ENOMEM;
	entry = proc_create("use_after_free", 0400, NULL, &session_ops);
	if (!entry) {
		kmem_cache_destroy(sessions);
		return -ENOMEM;
	}
	return 0;
}

static void __exit use_after_free_exit(void)
{
	proc_remove(entry);
	kmem_cache_destroy(sessions);
}

module_init(use_after_free_init);
module_exit(use_after_free_exit);

MODULE_DESCRIPTION("Uses memory that was freed and given to somebody else");
MODULE_LICENSE("GPL");
