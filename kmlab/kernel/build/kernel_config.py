"""Tell which option of a kernel's .config a symbol belongs to, and which flavour of an archive's kernels has it.

Follows the Makefiles of the kernel's subsystems (`obj-$(CONFIG_USB) += usb/`) and their headers, in which a function
whose option is off is an empty stand-in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from kmlab.kernel.build.kernel_releases import split_release

_OPTIONS: tuple[tuple[str, str], ...] = (
    ("USB_SERIAL", "usb_serial_"),
    ("USB_USBNET", "usbnet_"),
    ("USB_STORAGE", "usb_stor_"),
    ("USB_GADGET", "usb_gadget_|usb_ep_|usb_composite_|usb_(?:add|put|get)?_?function"),
    ("TYPEC", "typec_"),
    ("USB", "usb_|usbd_|ezusb_"),
    ("I2C_MUX", "i2c_mux_"),
    ("I2C", "i2c_"),
    ("SPI", "spi_(?!nor_)"),
    ("GPIOLIB", "gpiod_|gpio_|gpiochip_|fwnode_gpiod_|fwnode_get_named_gpiod|desc_to_gpio"),
    ("HWMON", "hwmon_"),
    ("DRM_TTM", "ttm_"),
    ("DRM_MIPI_DSI", "mipi_dsi_"),
    ("DRM", "drm_|drmm_"),
    ("SND_SOC", "snd_soc_"),
    ("SND_HDA", "snd_hda_|snd_hdac_|hda_"),
    ("SND", "snd_"),
    ("VIDEO_DEV", "v4l2_|video_(?:device_|register_|unregister_|ioctl2)|vb2_"),
    ("MEDIA_CONTROLLER", "media_device_|media_entity_|media_pipeline_|media_create_"),
    ("DVB_CORE", "dvb_|dvbdev_|dmxdev_"),
    ("RC_CORE", "rc_(?:register|unregister|allocate|free|keydown|repeat|map)|ir_raw_"),
    ("CEC_CORE", "cec_"),
    ("MAC80211", "ieee80211_(?!channel_|freq_|get_channel|get_hdrlen|amsdu_|bss_|chandef_|data_|get_mesh|get_num"
     "|get_response|get_vht|ie_|mandatory|operating_|radiotap|s1g|strip|hdrlen|color|fragment|is_valid)"),
    ("CFG80211", "cfg80211_|wiphy_|regulatory_|freq_reg_info|ieee80211_|reg_"),
    ("RFKILL", "rfkill_"),
    ("BT", "bt_|hci_|l2cap_|rfcomm_"),
    ("BACKLIGHT_CLASS_DEVICE", "backlight_"),
    ("LEDS_CLASS", "led_classdev_|led_trigger_|led_init_|led_set_|of_led_"),
    ("IIO", "iio_"),
    ("MMC_SDHCI", "sdhci_"),
    ("MMC", "mmc_|sdio_"),
    ("MTD", "mtd_|nand_|spi_nor_|spinand_|onenand_|cfi_"),
    ("REGMAP_I2C", "regmap_init_i2c"),
    ("REGMAP_SPI", "regmap_init_spi"),
    ("REGMAP", "regmap_|regcache_"),
    ("REGULATOR", "regulator_|rdev_"),
    ("PWM", "pwm_|pwmchip_"),
    ("CAN_DEV", "can_|alloc_candev|free_candev|open_candev|close_candev|register_candev|unregister_candev|safe_candev"),
    ("PHYLINK", "phylink_"),
    ("SFP", "sfp_"),
    ("GENERIC_PHY", "phy_(?:power_o|init$|exit$|configure|reset$|calibrate|get$|put$|create|destroy|optional_get|"
     "validate|set_mode_ext|set_media|set_speed|notify)|of_phy_provider|of_phy_simple|of_phy_get|of_phy_put"),
    ("PHYLIB", "phy_|genphy_|mdiobus_|mdio_|mdiodev_|of_phy_|of_mdio|fixed_phy_|gen10g_"),
    ("EXTCON", "extcon_"),
    ("KUNIT", "kunit_|__kunit_"),
    ("PCMCIA", "pcmcia_|pccard_"),
    ("PARPORT", "parport_"),
    ("W1", "w1_"),
    ("NFC", "nfc_|nci_"),
    ("FIREWIRE", "fw_(?:core|card|send|run|iso|device|schedule|cancel|high|get|fill|csr|bus)"),
    ("NVMEM", "nvmem_"),
    ("MII", "mii_"),
    ("PPP", "ppp_"),
    ("SLHC", "slhc_"),
    ("MEMSTICK", "memstick_"),
    ("CRYPTO_ENGINE", "crypto_engine_|crypto_transfer_|crypto_finalize_"),
    ("USB4", "tb_"),
    ("COMMON_CLK", "clk_|clkdev_|of_clk_"),
    ("PINCTRL", "pinctrl_|pinconf_|pinmux_"),
    ("SOUNDWIRE", "sdw_"),
    ("SLIMBUS", "slim_|slimbus_"),
    ("SSB", "ssb_"),
    ("BCMA", "bcma_"),
    ("COMEDI", "comedi_"),
    ("EDAC", "edac_"),
    ("PM_DEVFREQ", "devfreq_"),
    ("RESET_CONTROLLER", "reset_control"),
    ("NET_SWITCHDEV", "switchdev_|call_switchdev_"),
    ("AX25", "ax25_"),
    ("ATM", "atm_|vcc_"),
    ("NET_9P", "p9_|p9stat_|v9fs_"),
    ("POWER_SUPPLY", "power_supply_"),
    ("THERMAL", "thermal_"),
    ("WATCHDOG_CORE", "watchdog_(?:register|unregister|init_timeout|set_restart)"),
    ("RTC_CLASS", "rtc_(?:class|read|set|update|register|allocate|valid)"),
    ("UIO", "uio_"),
    ("VFIO", "vfio_"),
    ("SERIO", "serio_"),
    ("GAMEPORT", "gameport_"),
    ("INPUT", "input_"),
    ("HID", "hid_"),
    ("ATA", "ata_|sata_"),
    ("SCSI", "scsi_"),
    ("SERIAL_CORE", "uart_"),
    ("FB", "register_framebuffer|unregister_framebuffer|framebuffer_|fb_(?:alloc|dealloc|set|pan|blank|find)"),
    ("INFINIBAND", "ib_|rdma_|ibnl_"),
    ("DMA_ENGINE", "dma_async_|dmaengine_|dma_request_|dma_release_channel"),
    ("MFD_CORE", "mfd_"),
    ("KPROBES", "register_k(?:ret)?probes?$|unregister_k(?:ret)?probes?$"),
    ("INTEL_MEI", "mei_"),
    ("ACPI_VIDEO", "acpi_video_"),
    ("ACPI_WMI", "wmi_"),
    ("ACPI_PLATFORM_PROFILE", "platform_profile_"),
    ("NETFILTER", "nf_(?:register|unregister|hook)"),
    ("NETFILTER_XTABLES", "xt_"),
    ("NF_TABLES", "nft_"),
    ("NF_CONNTRACK", "nf_ct_|nf_conntrack_"),
    ("SERIAL_8250", "serial8250_"),
    ("FB_SYS_FILLRECT", "sys_fillrect"),
    ("FB_SYS_COPYAREA", "sys_copyarea"),
    ("FB_SYS_IMAGEBLIT", "sys_imageblit"),
)  # fmt: skip
"""An option without CONFIG_, and how the names of what it exports begin; the first that fits counts."""

_STAND_INS = (
    ("GPIOLIB", r"(?:devm_)?(?:gpiod_get|gpio_request)\w*|gpio_direction_\w+|gpiod?_to_irq"),
    ("KPROBES", r"register_k(?:ret)?probes?"),
    ("TRACEPOINTS", r"register_trace_\w+"),
    ("OF", r"of_property_\w+|of_irq_\w+|of_alias_get_id"),
    ("GENERIC_PHY", r"(?:devm_)?(?:of_)?phy_get|phy_init|phy_power_on"),
    ("PM_GENERIC_DOMAINS", r"pm_genpd_\w+|of_genpd_\w+"),
)  # fmt: skip
"""Functions that return -ENOSYS, and do nothing, in a kernel without the option."""

_REDUCED = ("cloud", "kvm", "aws", "azure", "gcp", "gke", "oracle", "ibm")
"""Flavours that are built without most devices: Debian's for clouds, Ubuntu's for one of them each."""

_IN_NO_FLAVOUR = frozenset({"KUNIT"})
"""Options that none of Debian's flavours has."""


def option_of(symbol: str) -> str | None:
    """Find the option, without CONFIG_, that the code with this symbol is built by; None where that is not known."""
    name = symbol.lstrip("_").removeprefix("devm_")
    return next((option for option, begins in _OPTIONS if re.match(begins, name)), None)


def is_off(option: str, config: Mapping[str, str] | None, release: str) -> bool:
    """Tell whether a kernel is built without the option; without its .config, whether its flavour probably is."""
    return option not in config if config is not None else is_reduced(release)


def is_reduced(release: str) -> bool:
    """Tell whether a kernel is of a flavour that lacks most devices."""
    return not _REDUCED_WORDS.isdisjoint(split_release(release)[1].split("-"))


def remedy(option: str, release: str) -> str:
    """Say what to do about an option that is off."""
    if is_reduced(release) and option not in _IN_NO_FLAVOUR:
        return "the flavour generic has it (kernel: generic)"
    return "take a kernel that has it, such as one of your own (kernel: in lab.yaml)"


def find_stand_ins(sources: Iterable[str], config: Mapping[str, str] | None, release: str) -> tuple[str, str] | None:
    """Find the first function that the sources call and that returns -ENOSYS here, with its option; None for none."""
    texts = list(sources)
    for option, names in _STAND_INS:
        if not is_off(option, config, release):
            continue
        for text in texts:
            found = re.search(rf"\b({names})\s{{0,4}}\(", text)
            if found:
                return found[1], option
    return None


_REDUCED_WORDS = frozenset(_REDUCED)
