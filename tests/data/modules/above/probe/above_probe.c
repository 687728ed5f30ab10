// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include <included.h>
#include "../common/numbers.h"

static int __init above_probe_init(void)
{
	pr_info("above_probe: %d %d %d\n", ABOVE_NUMBER, ABOVE_INCLUDED, VERSION);
	return 0;
}

static void __exit above_probe_exit(void)
{
}

module_init(above_probe_init);
module_exit(above_probe_exit);
MODULE_DESCRIPTION("needs three files from beside its folder");
MODULE_LICENSE("GPL");
