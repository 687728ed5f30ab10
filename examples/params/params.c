// SPDX-License-Identifier: GPL-2.0
/* A number, a text and an array: given at load, shown in /sys/module/params/parameters. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/printk.h>

static int my_int = 42;
module_param(my_int, int, 0644);
MODULE_PARM_DESC(my_int, "A whole number, which root may change while the module is loaded");

static char *my_str = "egg";
module_param(my_str, charp, 0444);
MODULE_PARM_DESC(my_str, "A text");

static int my_int_array[8] = { 1, 2 };
static int my_int_count = 2;
module_param_array(my_int_array, int, &my_int_count, 0444);
MODULE_PARM_DESC(my_int_array, "Up to eight whole numbers");

static int __init params_init(void)
{
	int i;

	pr_info("my_int is %d\n", my_int);
	pr_info("my_str is \"%s\"\n", my_str);
	for (i = 0; i < my_int_count; i++)
		pr_info("my_int_array[%d] is %d\n", i, my_int_array[i]);
	return 0;
}

static void __exit params_exit(void)
{
	pr_info("my_int is %d in the end\n", my_int);
}

module_init(params_init);
module_exit(params_exit);

MODULE_DESCRIPTION("Module parameters");
MODULE_LICENSE("GPL");
