// SPDX-License-Identifier: GPL-2.0
/* A function with its KUnit tests (Documentation/dev-tools/kunit/). It needs a kernel with CONFIG_KUNIT. */
#include <kunit/test.h>
#include <linux/errno.h>
#include <linux/module.h>
#include <linux/moduleparam.h>

static bool broken;
module_param(broken, bool, 0444);
MODULE_PARM_DESC(broken, "Let one case fail");

/* The larva's size after so many moults; -ERANGE beyond the fifth. */
static int larva_size(int moults)
{
	if (moults < 0 || moults > 5)
		return -ERANGE;
	return (broken && moults == 5 ? 30 : 1 << moults);
}

static void larva_begins_small(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, larva_size(0), 1);
}

static void larva_doubles_with_each_moult(struct kunit *test)
{
	int moults;

	for (moults = 1; moults <= 5; moults++)
		KUNIT_EXPECT_EQ(test, larva_size(moults), 2 * larva_size(moults - 1));
}

static void larva_moults_five_times(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, larva_size(6), -ERANGE);
	KUNIT_EXPECT_EQ(test, larva_size(-1), -ERANGE);
}

static void larva_flies(struct kunit *test)
{
	kunit_skip(test, "a larva has no wings");
}

static struct kunit_case larva_cases[] = {
	KUNIT_CASE(larva_begins_small),
	KUNIT_CASE(larva_doubles_with_each_moult),
	KUNIT_CASE(larva_moults_five_times),
	KUNIT_CASE(larva_flies),
	{}
};

static struct kunit_suite larva_suite = {
	.name = "larva",
	.test_cases = larva_cases,
};
kunit_test_suite(larva_suite);

MODULE_DESCRIPTION("A function with its KUnit tests");
MODULE_LICENSE("GPL");
