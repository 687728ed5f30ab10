// SPDX-License-Identifier: GPL-2.0
/* Locks in the wrong order, in the wrong context, not given back. */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include "bugs.h"

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DEFINE_SPINLOCK(spin);
static struct mutex pair[2];
static struct timer_list timer;
static int __rcu *shared;
static int value;

static noinline int order(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);
	return 0;
}

static noinline void order_exit(void)
{
	mutex_lock(&second);
	mutex_lock(&first);					/* HERE order */
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static noinline int same_class(void)
{
	int i;

	for (i = 0; i < 2; i++)
		mutex_init(&pair[i]);
	mutex_lock(&pair[0]);
	mutex_lock(&pair[one]);					/* HERE same_class */
	mutex_unlock(&pair[1]);
	mutex_unlock(&pair[0]);
	return 0;
}

static noinline void on_timer(struct timer_list *unused)
{
	spin_lock(&spin);
	value++;
	spin_unlock(&spin);
}

static noinline int in_interrupt_too(void)
{
	timer_setup(&timer, on_timer, 0);
	mod_timer(&timer, jiffies + 1);
	msleep(100);
	return 0;
}

static noinline void in_interrupt_too_exit(void)
{
	del_timer_sync(&timer);
	spin_lock(&spin);					/* HERE in_interrupt_too */
	value = 0;
	spin_unlock(&spin);
}

static noinline int mutex_in_spinlock(void)
{
	spin_lock(&spin);
	mutex_lock(&first);					/* HERE mutex_in_spinlock */
	mutex_unlock(&first);
	spin_unlock(&spin);
	return 0;
}

static noinline int allocate_in_spinlock(void)
{
	void *buffer;

	spin_lock(&spin);
	buffer = kmalloc(64, GFP_KERNEL);			/* HERE allocate_in_spinlock */
	spin_unlock(&spin);
	kfree(buffer);
	return 0;
}

static noinline int cpu_of_a_preemptible_task(void)
{
	value = smp_processor_id();				/* HERE cpu_of_a_preemptible_task */
	return 0;
}

static noinline int rcu_without_lock(void)
{
	int *now = rcu_dereference(shared);			/* HERE rcu_without_lock */

	return now ? -EBUSY : 0;
}

static noinline void keep_mutex(void)
{
	mutex_lock(&first);					/* HERE mutex_kept */
}

static noinline void keep_rcu(void)
{
	rcu_read_lock();					/* HERE rcu_kept */
}

static noinline void keep_preemption_off(void)
{
	preempt_disable();					/* HERE preemption_kept */
}

static noinline int unlock_unlocked(void)
{
	mutex_unlock(&first);					/* HERE unlock_unlocked */
	return 0;
}

static noinline int free_locked(void)
{
	struct mutex *lock = kzalloc(sizeof(*lock), GFP_KERNEL);

	if (!lock)
		return -ENOMEM;
	mutex_init(lock);
	mutex_lock(lock);
	kfree(lock);						/* HERE free_locked */
	return 0;
}

static noinline void sleep_on_timer(struct timer_list *unused)
{
	msleep(1);						/* HERE sleep_in_timer */
}

static noinline int sleep_in_timer(void)
{
	timer_setup(&timer, sleep_on_timer, 0);
	mod_timer(&timer, jiffies + 1);
	msleep(200);
	return 0;
}

static noinline void sleep_in_timer_exit(void)
{
	del_timer_sync(&timer);
}

static const struct bug bugs[] = {
	{ "order", order, order_exit },
	{ "same_class", same_class },
	{ "in_interrupt_too", in_interrupt_too, in_interrupt_too_exit },
	{ "mutex_in_spinlock", mutex_in_spinlock },
	{ "allocate_in_spinlock", allocate_in_spinlock },
	{ "cpu_of_a_preemptible_task", cpu_of_a_preemptible_task },
	{ "rcu_without_lock", rcu_without_lock },
	{ "mutex_kept", NULL, NULL, keep_mutex },
	{ "rcu_kept", NULL, NULL, keep_rcu },
	{ "preemption_kept", NULL, NULL, keep_preemption_off },
	{ "unlock_unlocked", unlock_unlocked },
	{ "free_locked", free_locked },
	{ "sleep_in_timer", sleep_in_timer, sleep_in_timer_exit },
};
BUGS(bugs);
