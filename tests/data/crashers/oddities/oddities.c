// SPDX-License-Identifier: GPL-2.0
/* Goes wrong where no frame of a trace names the module, chosen by `what`. The line to blame is marked with the name. */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/preempt.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

static char *what = "";
module_param(what, charp, 0444);

static struct completion *volatile nothing;
static char *text;

/* Their last act is a call, of which the compiler makes a jump. */
static void tail_work(struct work_struct *work)
{
	pr_info("oddities: almost done\n");
	complete(nothing);					/* HERE tail_work */
}
static DECLARE_WORK(finishing, tail_work);

static ssize_t tail_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	return simple_read_from_buffer(to, size, at, text, 64);	/* HERE tail_read */
}
static const struct file_operations device_ops = { .owner = THIS_MODULE, .read = tail_read };
static struct miscdevice device = { .minor = MISC_DYNAMIC_MINOR, .name = "oddities", .fops = &device_ops };

static void tail_nap(struct timer_list *timer)
{
	msleep(20);						/* HERE tail_nap */
}
static DEFINE_TIMER(napping, tail_nap);

/* The kernel finds these out when they have returned, so that it knows no more than their names. */
static void unbalanced_work(struct work_struct *work)
{								/* HERE unbalanced_work */
	preempt_disable();
}
static DECLARE_WORK(leaking, unbalanced_work);

static void unbalanced_timer(struct timer_list *timer)		/* HERE unbalanced_timer */
{
	preempt_disable();
}
static DEFINE_TIMER(leaning, unbalanced_timer);

/* A timer that nobody stops, in memory that nobody frees, set up while the module runs. */
struct beat {
	struct timer_list timer;
	unsigned long count;
};

static void heap_timer(struct timer_list *timer)
{								/* HERE heap_timer */
	container_of(timer, struct beat, timer)->count++;
	mod_timer(timer, jiffies + HZ / 5);
}

static void start_heap_timer(void)
{
	struct beat *beat = kzalloc(sizeof(*beat), GFP_KERNEL);

	if (!beat)
		return;
	timer_setup(&beat->timer, heap_timer, 0);
	mod_timer(&beat->timer, jiffies + HZ / 5);
}

static struct timer_list still;

static void still_timer(struct timer_list *timer)
{								/* HERE still_timer */
	mod_timer(timer, jiffies + HZ / 5);
}

static int __init oddities_init(void)
{
	if (!strcmp(what, "tail_work"))
		schedule_work(&finishing);
	else if (!strcmp(what, "unbalanced_work"))
		schedule_work(&leaking);
	else if (!strcmp(what, "tail_nap"))
		mod_timer(&napping, jiffies + 2);
	else if (!strcmp(what, "unbalanced_timer"))
		mod_timer(&leaning, jiffies + 2);
	else if (!strcmp(what, "heap_timer"))
		start_heap_timer();
	else if (!strcmp(what, "failed_init")) {
		start_heap_timer();
		return -ENODEV;
	} else if (!strcmp(what, "still_timer")) {
		timer_setup(&still, still_timer, 0);
		mod_timer(&still, jiffies + HZ / 5);
	} else if (!strcmp(what, "tail_read"))
		return misc_register(&device);
	msleep(50);
	return 0;
}

static void __exit oddities_exit(void)
{
	if (!strcmp(what, "tail_read"))
		misc_deregister(&device);
}

module_init(oddities_init);
module_exit(oddities_exit);

MODULE_DESCRIPTION("Goes wrong where no frame names it");
MODULE_LICENSE("GPL");
