"""Which devices a module's drivers are bound to, as the guest's sysfs has it: everything there is the guest's word."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kmlab.kernel.module.bound_devices import (
    Driver,
    describe_unbound,
    parse_drivers,
    question,
    registers_driver,
    unite,
)
from kmlab.testing import module_image

EDU = Driver("edu", "pci", "edu", ("0000:05:00.0",))


@pytest.mark.parametrize(
    "symbol",
    [
        *("__pci_register_driver", "usb_register_driver", "i2c_register_driver", "__platform_driver_register"),
        *("__platform_driver_probe", "driver_register", "register_virtio_driver", "__register_virtio_driver"),
        *("usb_serial_register_drivers", "usb_gadget_register_driver_owner", "phy_drivers_register"),
        *("__hid_register_driver", "__spi_register_driver", "__auxiliary_driver_register", "usb_composite_probe"),
    ],
)
def test_a_module_that_registers_a_driver_is_known_by_what_it_imports(symbol: str) -> None:
    assert registers_driver(module_image("m", imports=["_printk", symbol]))


@pytest.mark.parametrize("symbol", ["__register_chrdev", "misc_register", "driver_unregister", "pci_unregister_driver"])
def test_other_modules_are_not_asked(symbol: str) -> None:
    assert not registers_driver(module_image("m", imports=[symbol]))


def sysfs(root: Path) -> None:
    """A part of /sys: the module m has two drivers, and one of them has two devices."""
    for driver in ("pci/drivers/edu", "i2c/drivers/idle"):
        (root / "bus" / driver).mkdir(parents=True)
        (root / "bus" / driver / "bind").touch()
    (root / "module/m/drivers").mkdir(parents=True)
    (root / "module/m/drivers/pci:edu").symlink_to(root / "bus/pci/drivers/edu")
    (root / "module/m/drivers/i2c:idle").symlink_to(root / "bus/i2c/drivers/idle")
    for name in ("0000:05:00.0", "odd name\n*"):
        (root / "devices" / name).mkdir(parents=True)
        (root / "devices" / name / "driver").symlink_to(root / "bus/pci/drivers/edu")
        (root / "bus/pci/drivers/edu" / name).symlink_to(root / "devices" / name)
    (root / "bus/pci/drivers/edu/module").symlink_to(root / "module/m")


def test_the_shell_line_finds_the_drivers_of_a_module_and_their_devices(tmp_path: Path) -> None:
    sysfs(tmp_path)
    line = question(["m", "absent", "bad name; reboot"])
    assert "reboot" not in line
    ended = subprocess.run(["sh", "-c", line.replace("/sys/", f"{tmp_path}/")], capture_output=True, check=True)
    assert parse_drivers(ended.stdout) == (
        Driver("m", "i2c", "idle", ()),
        Driver("m", "pci", "edu", ("0000:05:00.0", "odd name\\x0a*")),
    )


@pytest.mark.parametrize("answer", [b"", b"\0", b"m\0", b"\0\0\0\0\0", b"\xff" * 100, b"for m in"])
def test_an_answer_that_is_none_has_no_driver(answer: bytes) -> None:
    assert parse_drivers(answer) == ()


def test_what_a_guest_says_is_made_printable_and_has_limits() -> None:
    (driver,) = parse_drivers(b"m\0pci:\x1b[31mred\0\x1b]0;title\x07\0" + b"d\0" * 5000)
    assert "\x1b" not in "".join((driver.name, *driver.devices))
    assert len(driver.devices) == 256
    assert len(parse_drivers(b"m\0b:n\0\0" * 5000)) == 64
    assert len(parse_drivers(b"m\0b:" + b"x" * 5000 + b"\0\0")[0].name) <= 100


def test_devices_of_two_moments_all_count() -> None:
    after = (EDU._replace(devices=()), Driver("edu", "usb", "edu", ("1-1:1.0",)))
    assert unite([EDU], after) == (EDU, after[1])


def test_the_remark_names_what_the_driver_is_for() -> None:
    alias = "pci:v00001234d000011E8sv*sd*bc*sc*i*"
    said = describe_unbound(EDU._replace(devices=()), [alias, "usb:v0403p6001d*dc*dsc*dp*ic*isc*ip*in*", "odd"])
    assert said.startswith("edu registers the pci driver edu (it drives 1234:11e8, 0403:6001), and no device was bound")
