// SPDX-License-Identifier: GPL-2.0
/* One check of the kernel's that fails, chosen by `what`. The line to blame is marked with the name. */
#include <linux/bug.h>
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

static char *what = "";
module_param(what, charp, 0444);

#define WATCHED (SLAB_CONSISTENCY_CHECKS | SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER)

static struct kmem_cache *cache;
static volatile int one = 1;
static DEFINE_SPINLOCK(spin);

static noinline void warn_plain(int value)
{
	WARN_ON(value > 0);					/* HERE warn_plain */
}

static noinline void warn_text(int value)
{
	WARN(value > 0, "checks: value %d at %p\n", value, &value);	/* HERE warn_text */
}

static noinline void warn_once(int value)
{
	WARN_ON_ONCE(value > 0);				/* HERE warn_once */
}

static noinline void warn_many(int times)
{
	while (times-- > 0)
		WARN_ON(one);					/* HERE warn_many */
}

static noinline void ref_underflow(refcount_t *count)
{
	refcount_set(count, 0);
	refcount_dec(count);					/* HERE ref_underflow */
}

static noinline void ref_after_zero(refcount_t *count)
{
	refcount_set(count, 0);
	refcount_inc(count);					/* HERE ref_after_zero */
}

static noinline void ref_saturated(refcount_t *count)
{
	refcount_set(count, INT_MAX);
	refcount_inc(count);					/* HERE ref_saturated */
}

static noinline void list_twice(struct list_head *head, struct list_head *entry)
{
	list_add(entry, head);
	list_add(entry, head);					/* HERE list_twice */
}

static noinline void list_gone(struct list_head *head, struct list_head *entry)
{
	list_add(entry, head);
	list_del(entry);
	list_del(entry);					/* HERE list_gone */
}

static noinline void list_smashed(struct list_head *head, struct list_head *entry)
{
	list_add(entry, head);
	head->next = head;
	list_del(entry);					/* HERE list_smashed */
}

static noinline void free_twice(void)
{
	void *object = kmem_cache_alloc(cache, GFP_KERNEL);

	kmem_cache_free(cache, object);
	kmem_cache_free(cache, object);				/* HERE free_twice */
}

static noinline void write_beyond(void)
{
	char *object = kmem_cache_alloc(cache, GFP_KERNEL);

	*((volatile char *)object + 104) = 1;
	kmem_cache_free(cache, object);				/* HERE write_beyond */
}

static noinline void write_after_free(void)
{
	char *object = kmem_cache_alloc(cache, GFP_KERNEL);

	kmem_cache_free(cache, object);
	*((volatile char *)object + 64) = 1;
	object = kmem_cache_alloc(cache, GFP_KERNEL);		/* HERE write_after_free */
	kmem_cache_free(cache, object);
}

static noinline void leave_objects(void)
{
	void *volatile object = kmem_cache_alloc(cache, GFP_KERNEL);

	pr_info("checks: left %d\n", !!object);
	kmem_cache_destroy(cache);				/* HERE leave_objects */
	cache = NULL;
}

static noinline void free_middle(void)
{
	char *object = kmalloc(64, GFP_KERNEL);

	vfree(object + 1);					/* HERE free_middle */
}

static noinline void copy_beyond(char *small, const char *text)
{
	pr_info("checks: copies %zu\n", strlen(text));
	memcpy(small, text, strlen(text) * one);
}

static noinline void fortified(const char *text)
{
	char small[8];

	strscpy(small, "a", sizeof(small));
	strcpy(small, text);					/* HERE fortified */
	copy_beyond(small, "a");
}

static noinline void copy_of_known_size(void)
{
	char *object = kmalloc(32, GFP_KERNEL);

	if (copy_to_user((void __user *)0x10000, object, 64 * one))	/* HERE copy_of_known_size */
		pr_info("checks: not copied\n");
	kfree(object);
}

static noinline void user_copy(void)
{
	/* Whose size the compiler has lost sight of. */
	char *volatile object = kmalloc(32, GFP_KERNEL);

	if (copy_to_user((void __user *)0x10000, object, 64 * one))	/* HERE user_copy */
		pr_info("checks: not copied\n");
	kfree(object);
}

static noinline void sleep_with_spinlock(void)
{
	spin_lock(&spin);
	msleep(10);						/* HERE sleep_with_spinlock */
	spin_unlock(&spin);
}

static noinline void sleep_in_preempt_off(void)
{
	preempt_disable();
	schedule_timeout_uninterruptible(2);			/* HERE sleep_in_preempt_off */
	preempt_enable();
}

static noinline int unbalanced(void)
{
	preempt_disable();
	return 0;
}

static int __init run(void)
{
	static LIST_HEAD(head);
	static struct list_head entry;
	static refcount_t count;

#define CASE(name, call) if (!strcmp(what, name)) { call; return 0; }
	CASE("warn_plain", warn_plain(one))
	CASE("warn_text", warn_text(one))
	CASE("warn_once", warn_once(one); warn_once(one))
	CASE("warn_many", warn_many(12))
	CASE("ref_underflow", ref_underflow(&count))
	CASE("ref_after_zero", ref_after_zero(&count))
	CASE("ref_saturated", ref_saturated(&count))
	CASE("list_twice", list_twice(&head, &entry))
	CASE("list_gone", list_gone(&head, &entry))
	CASE("list_smashed", list_smashed(&head, &entry))
	CASE("free_twice", free_twice())
	CASE("write_beyond", write_beyond())
	CASE("write_after_free", write_after_free())
	CASE("leave_objects", leave_objects())
	CASE("free_middle", free_middle())
	CASE("fortified", fortified(what))
	CASE("copy_of_known_size", copy_of_known_size())
	CASE("user_copy", user_copy())
	CASE("sleep_with_spinlock", sleep_with_spinlock())
	CASE("sleep_in_preempt_off", sleep_in_preempt_off())
	CASE("unbalanced", unbalanced())
	return -EINVAL;
}

static int __init checks_init(void)
{								/* HERE unbalanced */
	int err;

	cache = kmem_cache_create("checks", 104, 0, WATCHED, NULL);
	if (!cache)
		return -ENOMEM;
	err = run();
	if (err)
		kmem_cache_destroy(cache);
	return err;
}

static void __exit checks_exit(void)
{
	kmem_cache_destroy(cache);
}

module_init(checks_init);
module_exit(checks_exit);

MODULE_DESCRIPTION("Fails checks");
MODULE_LICENSE("GPL");
