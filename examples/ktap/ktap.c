// SPDX-License-Identifier: GPL-2.0
/* Tests itself when it is loaded, and prints the results as KTAP (Documentation/dev-tools/ktap.rst). */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/printk.h>

static bool broken;
module_param(broken, bool, 0444);
MODULE_PARM_DESC(broken, "Let one case fail");

static unsigned int larvae;

static unsigned int hatch(unsigned int eggs)
{
	return larvae += broken && eggs > 1 ? eggs - 1 : eggs;
}

static bool hatch_none(void)
{
	larvae = 0;
	return hatch(0) == 0;
}

static bool hatch_one(void)
{
	larvae = 0;
	return hatch(1) == 1;
}

static bool hatch_many(void)
{
	larvae = 1;
	return hatch(3) == 4;
}

static const struct {
	const char *name;
	bool (*run)(void);
} cases[] = {
	{ "hatch_none", hatch_none },
	{ "hatch_one", hatch_one },
	{ "hatch_many", hatch_many },
};

static int __init ktap_init(void)
{
	unsigned int i;

	pr_info("KTAP version 1\n");
	pr_info("1..%zu\n", ARRAY_SIZE(cases));
	for (i = 0; i < ARRAY_SIZE(cases); i++)
		pr_info("%s %u %s\n", cases[i].run() ? "ok" : "not ok", i + 1, cases[i].name);
	larvae = 0;
	return 0;
}

static int hatch_set(const char *text, const struct kernel_param *param)
{
	unsigned int eggs;
	int error = kstrtouint(text, 0, &eggs);

	if (!error)
		hatch(eggs);
	return error;
}

static int larvae_get(char *text, const struct kernel_param *param)
{
	return sprintf(text, "%u\n", larvae);
}

static const struct kernel_param_ops larvae_ops = { .set = hatch_set, .get = larvae_get };
module_param_cb(larvae, &larvae_ops, NULL, 0644);
MODULE_PARM_DESC(larvae, "How many have hatched; write a number of eggs to hatch more");

static void __exit ktap_exit(void)
{
	pr_info("%u larvae leave\n", larvae);
}

module_init(ktap_init);
module_exit(ktap_exit);

MODULE_DESCRIPTION("Results of tests, printed as KTAP");
MODULE_LICENSE("GPL");
