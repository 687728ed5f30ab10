// SPDX-License-Identifier: GPL-2.0
/* Forgets one thing when it is unloaded, chosen by `what`; `while_loading` ones are wrong before. */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/kthread.h>
#include <linux/if_arp.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mount.h>
#include <linux/netdevice.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

static char *what = "";
module_param(what, charp, 0444);

static noinline void late_timer(struct timer_list *timer)
{								/* HERE timer */
	mod_timer(timer, jiffies + HZ / 4);
}
static DEFINE_TIMER(timer, late_timer);

static noinline void late_work(struct work_struct *work)
{								/* HERE work */
	schedule_delayed_work(to_delayed_work(work), HZ / 4);
}
static DECLARE_DELAYED_WORK(work, late_work);

static noinline int endless_thread(void *unused)
{
	for (;;)
		msleep(100);					/* HERE kthread */
	return 0;
}

static int show(struct seq_file *seq, void *unused)
{
	seq_puts(seq, "here\n");
	return 0;
}

static struct proc_dir_entry *folder;

static noinline void forget_children(void)
{
	/* remove_proc_entry() is for one that is empty; it warns of others. */
	remove_proc_entry("leftovers", NULL);			/* HERE proc_children */
}

static noinline void register_twice(void)
{
	proc_create_single("leftovers_twice", 0400, NULL, show);
	proc_create_single("leftovers_twice", 0400, NULL, show);	/* HERE proc_twice */
}

static noinline void name_twice(void)
{
	struct kobject *object = kobject_create_and_add("leftovers", kernel_kobj);

	object = kobject_create_and_add("leftovers", kernel_kobj);	/* HERE sysfs_twice */
	pr_info("leftovers: %p\n", object);
}

static noinline void remove_absent(void)
{
	remove_proc_entry("leftovers_absent", NULL);		/* HERE proc_absent */
}

static struct net_device *network;

static netdev_tx_t drop(struct sk_buff *packet, struct net_device *device)
{
	kfree_skb(packet);
	return NETDEV_TX_OK;
}
static const struct net_device_ops network_ops = { .ndo_start_xmit = drop };

static void set_up(struct net_device *device)
{
	device->netdev_ops = &network_ops;
	device->type = ARPHRD_NONE;
	device->mtu = 1500;
	device->needs_free_netdev = true;
}

static noinline int hold_network(void)
{
	network = alloc_netdev(0, "left%d", NET_NAME_UNKNOWN, set_up);
	if (!network)
		return -ENOMEM;
	if (register_netdev(network))
		return -EIO;
	dev_hold(network);
	return 0;
}

static noinline void release_network(void)
{
	unregister_netdev(network);				/* HERE netdev */
}

static int open_device(struct inode *inode, struct file *file)
{
	return 0;
}
static const struct file_operations device_ops = { .owner = THIS_MODULE, .open = open_device };
static struct miscdevice device = { .minor = MISC_DYNAMIC_MINOR, .name = "leftovers", .fops = &device_ops };

static int __init leftovers_init(void)
{
	if (!strcmp(what, "timer"))
		mod_timer(&timer, jiffies + HZ / 4);
	else if (!strcmp(what, "work"))
		schedule_delayed_work(&work, HZ / 4);
	else if (!strcmp(what, "kthread"))
		kthread_run(endless_thread, NULL, "leftovers");
	else if (!strcmp(what, "proc_children")) {
		folder = proc_mkdir("leftovers", NULL);
		proc_create_single("child", 0400, folder, show);
	} else if (!strcmp(what, "proc_twice"))
		register_twice();
	else if (!strcmp(what, "sysfs_twice"))
		name_twice();
	else if (!strcmp(what, "netdev"))
		return hold_network();
	else if (!strcmp(what, "in_use") || !strcmp(what, "device"))
		return misc_register(&device);
	return 0;
}

static void __exit leftovers_exit(void)
{
	if (!strcmp(what, "proc_children"))
		forget_children();
	if (!strcmp(what, "proc_absent"))
		remove_absent();
	if (network)
		release_network();
	if (!strcmp(what, "in_use"))
		misc_deregister(&device);
}

module_init(leftovers_init);
module_exit(leftovers_exit);

MODULE_DESCRIPTION("Leaves something behind");
MODULE_LICENSE("GPL");
