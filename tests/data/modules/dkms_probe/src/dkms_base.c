// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include "probed.h"

const char *dkms_probed(void);
const char *dkms_probed(void)
{
	return PROBED;
}
EXPORT_SYMBOL_GPL(dkms_probed);

static int __init dkms_base_init(void)
{
	return 0;
}

static void __exit dkms_base_exit(void)
{
}

module_init(dkms_base_init);
module_exit(dkms_base_exit);
MODULE_DESCRIPTION("one of the modules of a dkms.conf");
MODULE_LICENSE("GPL");
