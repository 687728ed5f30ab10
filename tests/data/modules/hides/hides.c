// SPDX-License-Identifier: GPL-2.0
#include <linux/list.h>
#include <linux/module.h>
#include <linux/moduleparam.h>

static int hide(const char *value, const struct kernel_param *param)
{
	list_del_init(&THIS_MODULE->list);
	return 0;
}

static const struct kernel_param_ops hide_ops = { .set = hide };
module_param_cb(hide, &hide_ops, NULL, 0200);

static int __init hides_init(void)
{
	return 0;
}

static void __exit hides_exit(void)
{
}

module_init(hides_init);
module_exit(hides_exit);
MODULE_DESCRIPTION("takes itself off the kernel's list when it is told to");
MODULE_LICENSE("GPL");
