// SPDX-License-Identifier: GPL-2.0
/* One way never to end, chosen by `what`. The line to blame is marked with the name. */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/nmi.h>
#include <linux/rcupdate.h>
#include <linux/rwsem.h>
#include <linux/semaphore.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

static char *what = "";
module_param(what, charp, 0444);

static volatile int never;
static DEFINE_SPINLOCK(spin);
static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DECLARE_RWSEM(rwsem);
static struct semaphore semaphore = __SEMAPHORE_INITIALIZER(semaphore, 1);
static DECLARE_COMPLETION(completion);
static DECLARE_WAIT_QUEUE_HEAD(queue);

static noinline void busy(void)
{
	while (!never) cpu_relax();				/* HERE busy */

}

static noinline void preempt_off(void)
{
	preempt_disable();
	while (!never) barrier();				/* HERE preempt_off */

	preempt_enable();
}

static noinline void irqs_off(void *unused)
{
	local_irq_disable();
	while (!never) cpu_relax();				/* HERE irqs_off */

	local_irq_enable();
}

static noinline void irqs_off_everywhere(void)
{
	on_each_cpu(irqs_off, NULL, 0);
}

static noinline void rcu_held(void)
{
	rcu_read_lock();
	while (!never) touch_softlockup_watchdog();		/* HERE rcu_held */

	rcu_read_unlock();
}

static noinline void spin_twice(void)
{
	spin_lock(&spin);
	spin_lock(&spin);					/* HERE spin_twice */
	spin_unlock(&spin);
}

static noinline void mutex_twice(void)
{
	mutex_lock(&first);
	mutex_lock(&first);					/* HERE mutex_twice */
	mutex_unlock(&first);
}

static noinline int other_way(void *unused)
{
	mutex_lock(&second);
	msleep(300);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
	return 0;
}

static noinline void abba(void)
{
	mutex_lock(&first);
	kthread_run(other_way, NULL, "hangs_other");
	msleep(300);
	mutex_lock(&second);					/* HERE abba */
	mutex_unlock(&second);
	mutex_unlock(&first);
}

static noinline void complete_never(void)
{
	wait_for_completion(&completion);			/* HERE complete_never */
}

static noinline void down_twice(void)
{
	down(&semaphore);
	down(&semaphore);					/* HERE down_twice */
	up(&semaphore);
}

static noinline void write_twice(void)
{
	down_write(&rwsem);
	down_write(&rwsem);					/* HERE write_twice */
	up_write(&rwsem);
}

static noinline int wait_quietly(void)
{
	return wait_event_interruptible(queue, never);		/* HERE wait_quietly */
}

static noinline void poll_quietly(void)
{
	while (!never)
		msleep(50);					/* HERE poll_quietly */
}

static noinline void busy_work(struct work_struct *work)
{
	while (!never) touch_softlockup_watchdog();		/* HERE work_flushed */

}

static DECLARE_WORK(stuck, busy_work);

static noinline void work_flushed(void)
{
	schedule_work(&stuck);
	flush_work(&stuck);
}

static noinline void busy_timer(struct timer_list *timer)
{
	while (!never) cpu_relax();				/* HERE timer_busy */

}

static DEFINE_TIMER(timer, busy_timer);

static noinline int deaf_thread(void *unused)
{
	while (!never)
		msleep(50);
	return 0;
}

static struct task_struct *thread;

static noinline void stop_deaf_thread(void)
{
	kthread_stop(thread);					/* HERE stop_deaf_thread */
}

static int __init hangs_init(void)
{
#define CASE(name, call) if (!strcmp(what, name)) { call; return 0; }
	CASE("busy", busy())
	CASE("preempt_off", preempt_off())
	CASE("irqs_off", irqs_off(NULL))
	CASE("irqs_off_everywhere", irqs_off_everywhere())
	CASE("rcu_held", rcu_held())
	CASE("spin_twice", spin_twice())
	CASE("mutex_twice", mutex_twice())
	CASE("abba", abba())
	CASE("complete_never", complete_never())
	CASE("down_twice", down_twice())
	CASE("write_twice", write_twice())
	CASE("wait_quietly", return wait_quietly())
	CASE("poll_quietly", poll_quietly())
	CASE("work_flushed", work_flushed())
	CASE("timer_busy", mod_timer(&timer, jiffies + 2); msleep(100); busy())
	CASE("stop_deaf_thread", thread = kthread_run(deaf_thread, NULL, "hangs_deaf"))
	CASE("exit_waits", )
	return -EINVAL;
}

static void __exit hangs_exit(void)
{
	if (thread)
		stop_deaf_thread();
	if (!strcmp(what, "exit_waits"))
		complete_never();
}

module_init(hangs_init);
module_exit(hangs_exit);

MODULE_DESCRIPTION("Never ends");
MODULE_LICENSE("GPL");
