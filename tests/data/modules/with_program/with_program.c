// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include <linux/moduleparam.h>

static int answer = 42;
module_param(answer, int, 0444);

static int __init with_program_init(void)
{
	return 0;
}

static void __exit with_program_exit(void)
{
}

module_init(with_program_init);
module_exit(with_program_exit);
MODULE_DESCRIPTION("one of several modules of a folder");
MODULE_LICENSE("GPL");
