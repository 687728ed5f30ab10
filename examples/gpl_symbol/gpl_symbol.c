// SPDX-License-Identifier: LicenseRef-Proprietary
/* Uses a function that the kernel exports to GPL-compatible modules only. */
#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/module.h>

static struct kobject *folder;

static int __init gpl_symbol_init(void)
{
	folder = kobject_create_and_add("gpl_symbol", kernel_kobj);
	return folder ? 0 : -ENOMEM;
}

static void __exit gpl_symbol_exit(void)
{
	kobject_put(folder);
}

module_init(gpl_symbol_init);
module_exit(gpl_symbol_exit);

MODULE_DESCRIPTION("Uses a GPL-only function without being GPL-compatible");
MODULE_LICENSE("Proprietary");
