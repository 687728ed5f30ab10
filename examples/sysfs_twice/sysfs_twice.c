// SPDX-License-Identifier: GPL-2.0
/* Registers two objects of one name. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/module.h>

static struct kobject *ports[2];

static noinline void add_ports(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(ports); i++)
		/* The bug: the number is not in the name. */
		ports[i] = kobject_create_and_add("sysfs_twice", kernel_kobj);
}

static int __init sysfs_twice_init(void)
{
	add_ports();
	return 0;
}

static void __exit sysfs_twice_exit(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(ports); i++)
		kobject_put(ports[i]);
}

module_init(sysfs_twice_init);
module_exit(sysfs_twice_exit);

MODULE_DESCRIPTION("Two folders of one name in sysfs");
MODULE_LICENSE("GPL");
