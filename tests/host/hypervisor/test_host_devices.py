"""A device of this host goes to a guest only if everything that it needs is there: one error says what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmlab.common.errors import LabError
from kmlab.host.hypervisor.host_devices import check_pci_device, check_usb_device

ADDRESS = "0000:03:00.0"


class FakeSys:
    """A part of /sys and /dev with one PCI device and one USB device."""

    def __init__(self, root: Path) -> None:
        self.sys, self.dev = root / "sys", root / "dev"
        self.device = self.sys / "bus/pci/devices" / ADDRESS
        self.device.mkdir(parents=True)
        self.usb = self.sys / "bus/usb/devices/1-2"
        self.usb.mkdir(parents=True)
        for name, text in {"idVendor": "0403", "idProduct": "6001", "busnum": "1", "devnum": "7"}.items():
            (self.usb / name).write_text(f"{text}\n")

    def group(self, *others: tuple[str, str]) -> None:
        group = self.sys / "kernel/iommu_groups/5"
        (group / "devices").mkdir(parents=True)
        for name, driver in others:
            (group / "devices" / name).mkdir()
            (group / "devices" / name / "driver").symlink_to(f"../drivers/{driver}")
        (self.device / "iommu_group").symlink_to(group)

    def driver(self, name: str) -> None:
        (self.device / "driver").symlink_to(f"../drivers/{name}")

    def node(self, path: str) -> None:
        (self.dev / path).parent.mkdir(parents=True)
        (self.dev / path).touch()

    def check_pci(self) -> None:
        check_pci_device(ADDRESS, 1 << 30, self.sys, self.dev)


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


def refusal(fake: FakeSys) -> tuple[str, str]:
    with pytest.raises(LabError) as error:
        fake.check_pci()
    return error.value.message, error.value.hint or ""


def test_no_such_device(fake: FakeSys, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no such device"):
        check_pci_device("0000:04:00.0", 1 << 30, fake.sys, fake.dev)


def test_no_iommu(fake: FakeSys) -> None:
    message, hint = refusal(fake)
    assert "no IOMMU in use" in message and "intel_iommu=on" in hint


@pytest.mark.parametrize(("driver", "words"), [("nvme", "the driver nvme"), ("", "no driver")])
def test_the_host_s_own_driver(fake: FakeSys, driver: str, words: str) -> None:
    fake.group()
    if driver:
        fake.driver(driver)
    message, hint = refusal(fake)
    assert f"bound to {words}" in message and ADDRESS in hint


def test_a_neighbour_in_the_group(fake: FakeSys) -> None:
    fake.group(("0000:03:00.1", "snd_hda_intel"), ("0000:00:01.0", "pcieport"))
    fake.driver("vfio-pci")
    message, _ = refusal(fake)
    assert "0000:03:00.1 is in the same IOMMU group and bound to the driver snd_hda_intel" in message


def test_no_right_to_open_it_and_then_all_is_well(fake: FakeSys) -> None:
    fake.group()
    fake.driver("vfio-pci")
    message, hint = refusal(fake)
    assert "may not open" in message and "udev rule" in hint and "do not run kmlab as root" in hint
    fake.node("vfio/5")
    check_pci_device(ADDRESS, 0, fake.sys, fake.dev)


def test_a_usb_device_must_be_there_once_and_writable(fake: FakeSys) -> None:
    with pytest.raises(LabError, match="no such device"):
        check_usb_device("0403:6002", fake.sys, fake.dev)
    with pytest.raises(LabError, match=r"may not open .*bus/usb/001/007") as error:
        check_usb_device("0403:6001", fake.sys, fake.dev)
    assert "udev rule" in (error.value.hint or "")
    fake.node("bus/usb/001/007")
    check_usb_device("0403:6001", fake.sys, fake.dev)


def test_two_usb_devices_of_one_kind_are_ambiguous(fake: FakeSys) -> None:
    other = fake.usb.with_name("1-3")
    other.mkdir()
    for name in ("idVendor", "idProduct"):
        (other / name).write_text((fake.usb / name).read_text())
    with pytest.raises(LabError, match="2 of them"):
        check_usb_device("0403:6001", fake.sys, fake.dev)
