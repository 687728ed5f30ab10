// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
const char *dkms_probed(void);

static int __init dkms_user_init(void)
{
	pr_info("dkms_user: built for %s\n", dkms_probed());
	return 0;
}

static void __exit dkms_user_exit(void)
{
}

module_init(dkms_user_init);
module_exit(dkms_user_exit);
MODULE_DESCRIPTION("one of the modules of a dkms.conf");
MODULE_LICENSE("GPL");
