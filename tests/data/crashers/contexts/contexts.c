// SPDX-License-Identifier: GPL-2.0
/* A read through NULL in one of the contexts that code of a module runs in, chosen by `what`. */
#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/hrtimer.h>
#include <linux/init.h>
#include <linux/interrupt.h>
#include <linux/irq_work.h>
#include <linux/kobject.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/netdevice.h>
#include <linux/notifier.h>
#include <linux/proc_fs.h>
#include <linux/rcupdate.h>
#include <linux/seq_file.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

static char *what = "";
module_param(what, charp, 0444);

struct thing {
	long pad[5];
	long value;
};

static struct thing *volatile nothing;

static noinline int in_set(const char *value, const struct kernel_param *param)
{
	return nothing->value;					/* HERE param */
}

static const struct kernel_param_ops knob_ops = { .set = in_set };
module_param_cb(knob, &knob_ops, NULL, 0200);

static noinline void in_timer(struct timer_list *timer)
{
	pr_info("%ld\n", nothing->value);			/* HERE timer */
}
static DEFINE_TIMER(timer, in_timer);

static struct hrtimer hrtimer;
static noinline enum hrtimer_restart in_hrtimer(struct hrtimer *timer)
{
	pr_info("%ld\n", nothing->value);			/* HERE hrtimer */
	return HRTIMER_NORESTART;
}

static noinline void in_work(struct work_struct *work)
{
	pr_info("%ld\n", nothing->value);			/* HERE work */
}
static DECLARE_WORK(work, in_work);

static noinline void in_delayed_work(struct work_struct *work)
{
	pr_info("%ld\n", nothing->value);			/* HERE delayed_work */
}
static DECLARE_DELAYED_WORK(delayed_work, in_delayed_work);

static noinline int in_thread(void *unused)
{
	return nothing->value;					/* HERE kthread */
}

static noinline void in_tasklet(struct tasklet_struct *tasklet)
{
	pr_info("%ld\n", nothing->value);			/* HERE tasklet */
}
static DECLARE_TASKLET(tasklet, in_tasklet);

static noinline void in_irq_work(struct irq_work *work)
{
	pr_info("%ld\n", nothing->value);			/* HERE irq_work */
}
static struct irq_work irq_work = IRQ_WORK_INIT_HARD(in_irq_work);

static noinline void in_panic_irq(struct irq_work *work)
{
	panic("contexts: enough in an interrupt");		/* HERE panic_irq */
}
static struct irq_work panic_work = IRQ_WORK_INIT_HARD(in_panic_irq);

static noinline void on_cpu(void *unused)
{
	pr_info("%ld\n", nothing->value);			/* HERE other_cpu */
}

static struct rcu_head rcu_head;
static noinline void in_rcu(struct rcu_head *head)
{
	pr_info("%ld\n", nothing->value);			/* HERE rcu */
}

static noinline int in_notifier(struct notifier_block *block, unsigned long event, void *data)
{
	return nothing->value;					/* HERE notifier */
}
static struct notifier_block notifier = { .notifier_call = in_notifier };

static noinline int in_probe(struct kprobe *probe, struct pt_regs *regs)
{
	return nothing->value;					/* HERE kprobe */
}
static struct kprobe probe = { .symbol_name = "ksys_sync", .pre_handler = in_probe };

static noinline int in_seq(struct seq_file *seq, void *unused)
{
	seq_printf(seq, "%ld\n", nothing->value);		/* HERE proc */
	return 0;
}

static noinline ssize_t in_store(struct kobject *object, struct kobj_attribute *attribute, const char *text, size_t size)
{
	return nothing->value;					/* HERE sysfs */
}
static struct kobj_attribute attribute = __ATTR(knob, 0200, NULL, in_store);
static struct kobject *object;

static noinline ssize_t in_debugfs(struct file *file, char __user *to, size_t size, loff_t *offset)
{
	return nothing->value;					/* HERE debugfs */
}
static const struct file_operations debugfs_ops = { .owner = THIS_MODULE, .read = in_debugfs };
static struct dentry *folder;

static noinline int in_open(struct inode *inode, struct file *file)
{
	return nothing->value;					/* HERE open */
}
static noinline long in_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	return nothing->value;					/* HERE ioctl */
}
static noinline ssize_t in_write(struct file *file, const char __user *from, size_t size, loff_t *offset)
{
	return nothing->value;					/* HERE write */
}
static struct file_operations device_ops = { .owner = THIS_MODULE, .unlocked_ioctl = in_ioctl, .write = in_write };
static struct miscdevice device = { .minor = MISC_DYNAMIC_MINOR, .name = "contexts", .fops = &device_ops };
static bool registered;

static noinline void in_exit(void)
{
	pr_info("%ld\n", nothing->value);			/* HERE exit */
}

static int __init contexts_init(void)
{
	int err = 0;

#define CASE(name) else if (!strcmp(what, name))
	if (!strcmp(what, "timer"))
		mod_timer(&timer, jiffies + 2);
	CASE("hrtimer") {
		hrtimer_init(&hrtimer, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
		hrtimer.function = in_hrtimer;
		hrtimer_start(&hrtimer, ms_to_ktime(5), HRTIMER_MODE_REL);
	} CASE("work")
		schedule_work(&work);
	CASE("delayed_work")
		schedule_delayed_work(&delayed_work, 2);
	CASE("kthread")
		kthread_run(in_thread, NULL, "contexts_thread");
	CASE("tasklet")
		tasklet_schedule(&tasklet);
	CASE("irq_work")
		irq_work_queue(&irq_work);
	CASE("panic_irq")
		irq_work_queue(&panic_work);
	CASE("other_cpu")
		smp_call_function(on_cpu, NULL, 1);
	CASE("rcu")
		call_rcu(&rcu_head, in_rcu);
	CASE("notifier")
		err = register_netdevice_notifier(&notifier);
	CASE("kprobe")
		err = register_kprobe(&probe);
	CASE("proc")
		err = proc_create_single("contexts", 0400, NULL, in_seq) ? 0 : -ENOMEM;
	CASE("sysfs") {
		object = kobject_create_and_add("contexts", kernel_kobj);
		err = object ? sysfs_create_file(object, &attribute.attr) : -ENOMEM;
	} CASE("debugfs") {
		folder = debugfs_create_dir("contexts", NULL);
		debugfs_create_file("knob", 0400, folder, NULL, &debugfs_ops);
	} else if (!strcmp(what, "open") || !strcmp(what, "ioctl") || !strcmp(what, "write")) {
		if (!strcmp(what, "open"))
			device_ops.open = in_open;
		err = misc_register(&device);
		registered = !err;
	}
	/* Time for what was begun to happen, where it happens by itself. */
	msleep(20);
	return err;
}

static void __exit contexts_exit(void)
{
	if (!strcmp(what, "exit"))
		in_exit();
	if (registered)
		misc_deregister(&device);
	flush_work(&work);
}

module_init(contexts_init);
module_exit(contexts_exit);

MODULE_DESCRIPTION("Reads through NULL in many a context");
MODULE_LICENSE("GPL");
