// SPDX-License-Identifier: GPL-2.0
/* Asks for a firmware file that is not installed. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/device.h>
#include <linux/err.h>
#include <linux/firmware.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>

#define FIRMWARE_NAME "kmlab/no-such-firmware.bin"

static struct device *device;

static int __init firmware_missing_init(void)
{
	const struct firmware *firmware;
	int error;

	device = root_device_register("firmware_missing");
	if (IS_ERR(device))
		return PTR_ERR(device);
	error = request_firmware(&firmware, FIRMWARE_NAME, device);
	if (error) {
		pr_err("cannot do without %s: %pe\n", FIRMWARE_NAME, ERR_PTR(error));
		root_device_unregister(device);
		return error;
	}
	pr_info("%zu bytes of firmware\n", firmware->size);
	release_firmware(firmware);
	return 0;
}

static void __exit firmware_missing_exit(void)
{
	root_device_unregister(device);
}

module_init(firmware_missing_init);
module_exit(firmware_missing_exit);

MODULE_DESCRIPTION("Needs firmware that is not installed");
MODULE_LICENSE("GPL");
MODULE_FIRMWARE(FIRMWARE_NAME);
