// SPDX-License-Identifier: GPL-2.0
/* Removes an element from a list while it walks along it. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/module.h>

struct visitor {
	struct list_head link;
	int number;
};

static LIST_HEAD(visitors);
static struct visitor guests[] = { { .number = 1 }, { .number = 2 }, { .number = 3 } };

static noinline void send_home(int number)
{
	struct visitor *visitor;

	/* The bug: what is off the list leads nowhere. list_for_each_entry_safe() looks ahead. */
	list_for_each_entry(visitor, &visitors, link)
		if (visitor->number == number)
			list_del(&visitor->link);
}

static int __init removed_element_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(guests); i++)
		list_add_tail(&guests[i].link, &visitors);
	send_home(2);
	pr_info("visitor 2 went home\n");
	return 0;
}

static void __exit removed_element_exit(void)
{
}

module_init(removed_element_init);
module_exit(removed_element_exit);

MODULE_DESCRIPTION("Walks on from an element that it removed");
MODULE_LICENSE("GPL");
