// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include <linux/random.h>

static int __init random_numbers_init(void)
{
	u8 bytes[16];

	get_random_bytes(bytes, sizeof(bytes));
	pr_info("random_numbers: %16phN\n", bytes);
	return 0;
}

static void __exit random_numbers_exit(void)
{
}

module_init(random_numbers_init);
module_exit(random_numbers_exit);
MODULE_DESCRIPTION("prints sixteen random bytes when it is loaded");
MODULE_LICENSE("GPL");
