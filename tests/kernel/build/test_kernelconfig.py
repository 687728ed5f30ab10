"""kmlab.kernel.kernelconfig: which option of a kernel's .config a symbol belongs to, and which flavour has it."""

from __future__ import annotations

import pytest

from kmlab.kernel.build.kernel_config import is_off, is_reduced, option_of, remedy


@pytest.mark.parametrize(
    ("symbol", "option"),
    [
        ("usb_register_driver", "USB"),
        ("usb_serial_register_drivers", "USB_SERIAL"),
        ("usbnet_probe", "USB_USBNET"),
        ("__video_register_device", "VIDEO_DEV"),
        ("v4l2_device_register", "VIDEO_DEV"),
        ("snd_card_new", "SND"),
        ("snd_soc_register_component", "SND_SOC"),
        ("devm_snd_soc_register_card", "SND_SOC"),
        ("drm_dev_register", "DRM"),
        ("devm_drm_of_get_bridge", "DRM"),
        ("ieee80211_register_hw", "MAC80211"),
        ("ieee80211_channel_to_freq_khz", "CFG80211"),
        ("wiphy_register", "CFG80211"),
        ("cfg80211_scan_done", "CFG80211"),
        ("i2c_register_driver", "I2C"),
        ("gpiod_set_value", "GPIOLIB"),
        ("devm_gpiod_get", "GPIOLIB"),
        ("__spi_register_driver", "SPI"),
        ("spi_nor_scan", "MTD"),
        ("devm_iio_device_alloc", "IIO"),
        ("__devm_iio_device_register", "IIO"),
        ("hwmon_device_register_with_info", "HWMON"),
        ("devm_hwmon_device_register_with_info", "HWMON"),
        ("hci_register_dev", "BT"),
        ("rfkill_alloc", "RFKILL"),
        ("printk", None),
        ("my_own", None),
        ("", None),
    ],
)
def test_a_symbol_s_option_is_known(symbol: str, option: str | None) -> None:
    assert option_of(symbol) == option


@pytest.mark.parametrize(
    ("release", "reduced"),
    [
        ("6.1.0-56-cloud-amd64", True),
        ("6.12.95+deb13-cloud-arm64", True),
        ("5.15.0-1040-kvm", True),
        ("6.8.0-1012-aws", True),
        ("6.1.0-56-amd64", False),
        ("6.1.0-56-rt-amd64", False),
        ("6.8.0-45-generic", False),
        ("6.6.30-cloudy", False),
    ],
)
def test_a_flavour_without_devices_is_known(release: str, reduced: bool) -> None:
    assert is_reduced(release) == reduced
    assert ("kernel: generic" in remedy("USB", release)) == reduced
    assert is_off("USB", None, release) == reduced


def test_a_config_says_more_than_a_flavour() -> None:
    assert not is_off("USB", {"USB": "m"}, "6.1.0-56-cloud-amd64")
    assert is_off("USB", {"NET": "y"}, "6.1.0-56-amd64")
