// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>

static int __init dkms_old_init(void)
{
	return 0;
}

static void __exit dkms_old_exit(void)
{
}

module_init(dkms_old_init);
module_exit(dkms_old_exit);
MODULE_DESCRIPTION("one of the modules of a dkms.conf");
MODULE_LICENSE("GPL");
