// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include <linux/moduleparam.h>

#include "frames.h"

static int my_int = 3;
module_param(my_int, int, 0444);
MODULE_PARM_DESC(my_int, "How deep to go");
static int my_array[4];
static int my_array_len;
module_param_array(my_array, int, &my_array_len, 0444);
static char *my_str = "none";
module_param_named(label, my_str, charp, 0);
MODULE_PARM_DESC(label, "A word of yours: any");

/* The same name stands in other.c, with another size. */
static noinline int helper(int *place)
{
	return *place + 1;
}

static __always_inline int inner(int *place)
{
	barrier();
	*place = 42;
	return helper(place);
}

static __always_inline int middle(int *place)
{
	int found = my_int;

	found += inner(place);
	return found;
}

noinline int outer(int *place)
{
	int sum = middle(place);

	if (unlikely(sum > 1000)) {
		frames_report(sum);
		sum = other(place, sum);
	}
	return sum;
}

noinline __cold void frames_report(int sum)
{
	pr_err("frames: %d\n", sum);
	WARN_ON(sum > 2000);
}

static int __init frames_init(void)
{
	int value = 0;

	if (my_int > 100)
		return helper(NULL);
	return outer(&value) > 0 ? 0 : -EINVAL;
}

static void __exit frames_exit(void)
{
	int value = 1;

	pr_info("frames: leaving with %d %s\n", outer(&value), my_str);
}

module_init(frames_init);
module_exit(frames_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Shapes of frames that a symbolizer must tell apart");
MODULE_AUTHOR("kmlab");
MODULE_VERSION("1.2");
MODULE_ALIAS("frames-alias");
MODULE_SOFTDEP("pre: crc32c_generic post: loop");
