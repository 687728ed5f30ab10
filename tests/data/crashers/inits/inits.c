// SPDX-License-Identifier: GPL-2.0
/* Its init returns `answer`. */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/moduleparam.h>

static int answer;
module_param(answer, int, 0444);

static int __init inits_init(void)
{
	pr_info("inits: answers %d\n", answer);
	return answer;
}

static void __exit inits_exit(void)
{
}

module_init(inits_init);
module_exit(inits_exit);

MODULE_DESCRIPTION("Returns what it is told");
MODULE_LICENSE("GPL");
