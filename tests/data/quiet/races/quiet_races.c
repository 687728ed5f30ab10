// SPDX-License-Identifier: GPL-2.0
/* Two tasks, one place in memory, no lock. */
#include <linux/delay.h>
#include <linux/kthread.h>
#include "bugs.h"

static struct task_struct *tasks[2];
static unsigned long hits;
static int ready, answer;

static noinline int count_hits(void *unused)
{
	while (!kthread_should_stop()) {
		hits++;						/* HERE counter */
		if (!(hits % 1024))
			cond_resched();
	}
	return 0;
}

static noinline int publish(void *unused)
{
	while (!kthread_should_stop()) {
		answer = 42;
		ready = !ready;					/* HERE flag */
		cond_resched();
	}
	return 0;
}

static noinline int consume(void *unused)
{
	while (!kthread_should_stop()) {
		if (ready)
			answer = 0;
		cond_resched();
	}
	return 0;
}

static noinline int start(int (*one_task)(void *), int (*other)(void *))
{
	tasks[0] = kthread_run(one_task, NULL, "quiet_one");
	tasks[1] = kthread_run(other, NULL, "quiet_other");
	msleep(5000);
	return 0;
}

static noinline int counter(void)
{
	return start(count_hits, count_hits);
}

static noinline int flag(void)
{
	return start(publish, consume);
}

static noinline void stop(void)
{
	kthread_stop(tasks[0]);
	kthread_stop(tasks[1]);
}

static const struct bug bugs[] = {
	{ "counter", counter, stop },
	{ "flag", flag, stop },
};
BUGS(bugs);
