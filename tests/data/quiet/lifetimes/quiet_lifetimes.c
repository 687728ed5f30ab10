// SPDX-License-Identifier: GPL-2.0
/* Objects that are freed, initialised or added while the kernel still uses them. */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/timer.h>
#include <linux/workqueue.h>
#include "bugs.h"

struct holder {
	struct timer_list timer;
	struct delayed_work work;
	struct list_head list;
	struct rcu_head rcu;
	int value;
};

static LIST_HEAD(holders);
static struct timer_list own_timer;
static struct holder *holder;

static noinline void on_timer(struct timer_list *unused)
{
}

static noinline void on_work(struct work_struct *unused)
{
}

static noinline int timer_freed(void)
{
	holder = kzalloc(sizeof(*holder), GFP_KERNEL);
	if (!holder)
		return -ENOMEM;
	timer_setup(&holder->timer, on_timer, 0);
	mod_timer(&holder->timer, jiffies + 60 * HZ);
	kfree(holder);						/* HERE timer_freed */
	return 0;
}

static noinline int work_freed(void)
{
	holder = kzalloc(sizeof(*holder), GFP_KERNEL);
	if (!holder)
		return -ENOMEM;
	INIT_DELAYED_WORK(&holder->work, on_work);
	schedule_delayed_work(&holder->work, 60 * HZ);
	kfree(holder);						/* HERE work_freed */
	return 0;
}

static noinline int timer_of_the_module(void)
{
	timer_setup(&own_timer, on_timer, 0);
	mod_timer(&own_timer, jiffies + 60 * HZ);
	return 0;
}

static noinline int timer_set_up_twice(void)
{
	timer_setup(&own_timer, on_timer, 0);
	mod_timer(&own_timer, jiffies + 60 * HZ);
	timer_setup(&own_timer, on_timer, 0);			/* HERE timer_set_up_twice */
	return 0;
}

static noinline void timer_gone(void)
{
	del_timer_sync(&own_timer);
}

static noinline int list_twice(void)
{
	static struct holder item;

	list_add(&item.list, &holders);
	list_add(&item.list, &holders);				/* HERE list_twice */
	return 0;
}

static noinline int list_removed_twice(void)
{
	static struct holder item;

	list_add(&item.list, &holders);
	list_del(&item.list);
	list_del(&item.list);					/* HERE list_removed_twice */
	return 0;
}

static noinline int still_listed(void)
{
	struct holder *item = kzalloc(sizeof(*item), GFP_KERNEL);

	if (!item)
		return -ENOMEM;
	list_add(&item->list, &holders);
	kfree(item);
	return 0;
}

static noinline void still_listed_exit(void)
{
	struct holder *item;

	list_for_each_entry(item, &holders, list)
		item->value++;					/* HERE still_listed */
}

static noinline int on_reboot(struct notifier_block *block, unsigned long event, void *data)
{
	return NOTIFY_DONE;
}

static struct notifier_block block = { .notifier_call = on_reboot };

static noinline int notifier_twice(void)
{
	register_reboot_notifier(&block);
	register_reboot_notifier(&block);			/* HERE notifier_twice */
	return 0;
}

static noinline void notifier_gone(void)
{
	unregister_reboot_notifier(&block);
}

static noinline int signal_gone(void *data)
{
	struct completion *done = data;

	msleep(100);
	complete(done);						/* HERE completion_gone */
	return 0;
}

static noinline int completion_gone(void)
{
	struct completion *done = kzalloc(sizeof(*done), GFP_KERNEL);

	if (!done)
		return -ENOMEM;
	init_completion(done);
	kthread_run(signal_gone, done, "quiet_signal");
	wait_for_completion_timeout(done, 1);
	kfree(done);
	msleep(300);
	return 0;
}

static const struct bug bugs[] = {
	{ "timer_freed", timer_freed },
	{ "work_freed", work_freed },
	{ "timer_of_the_module", timer_of_the_module },
	{ "timer_set_up_twice", timer_set_up_twice, timer_gone },
	{ "list_twice", list_twice },
	{ "list_removed_twice", list_removed_twice },
	{ "still_listed", still_listed, still_listed_exit },
	{ "notifier_twice", notifier_twice, notifier_gone },
	{ "completion_gone", completion_gone },
};
BUGS(bugs);
