// SPDX-License-Identifier: GPL-2.0
/* A name is misspelt: the compiler says in which file, line and column. */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>

static int answer = 42;

static int __init build_error_init(void)
{
	pr_info("the answer is %d\n", anwser);
	return 0;
}

static void __exit build_error_exit(void)
{
	pr_info("it was %d\n", answer);
}

module_init(build_error_init);
module_exit(build_error_exit);

MODULE_DESCRIPTION("Does not compile");
MODULE_LICENSE("GPL");
