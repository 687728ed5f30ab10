// SPDX-License-Identifier: GPL-2.0
/* What is needed only at load lives in memory that the kernel takes back afterwards. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/printk.h>

static int rounds __initdata = 3;
static const char * const words[] __initconst = { "ready", "steady", "go" };

/* Outlives init, so it is neither __initdata nor __initconst. */
static int started;

static int __init init_exit_init(void)
{
	int i;

	for (i = 0; i < rounds; i++)
		pr_info("%s\n", words[i % ARRAY_SIZE(words)]);
	started = rounds;
	return 0;
}

static void __exit init_exit_exit(void)
{
	pr_info("%d words said, all of them forgotten\n", started);
}

module_init(init_exit_init);
module_exit(init_exit_exit);

MODULE_DESCRIPTION("__init, __exit, __initdata and __initconst");
MODULE_LICENSE("GPL");
