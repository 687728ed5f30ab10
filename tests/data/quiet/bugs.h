/* SPDX-License-Identifier: GPL-2.0 */
/* A module of several bugs, of which `what` chooses one. `poke` runs it again, from a program that writes to it. */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/string.h>

struct bug {
	const char *name;
	int (*init)(void);
	void (*exit)(void);
	void (*poke)(void);
};

static char *what = "";
module_param(what, charp, 0444);

static const struct bug *bug;
/* Values that the compiler does not know. */
static volatile int zero, one = 1;

#define BUGS(list)								\
	static int poke_set(const char *value, const struct kernel_param *param) \
	{									\
		if (bug && bug->poke)						\
			bug->poke();						\
		return 0;							\
	}									\
	static const struct kernel_param_ops poke_ops = { .set = poke_set };	\
	module_param_cb(poke, &poke_ops, NULL, 0200);				\
	static int __init bugs_init(void)					\
	{									\
		const struct bug *each;						\
										\
		for (each = list; each < list + ARRAY_SIZE(list); each++)	\
			if (!strcmp(each->name, what))				\
				bug = each;					\
		if (!bug)							\
			return -EINVAL;						\
		return bug->init ? bug->init() : 0;				\
	}									\
	static void __exit bugs_exit(void)					\
	{									\
		if (bug->exit)							\
			bug->exit();						\
	}									\
	module_init(bugs_init);							\
	module_exit(bugs_exit);							\
	MODULE_DESCRIPTION("Bugs that a stock kernel does not notice");		\
	MODULE_LICENSE("GPL")
