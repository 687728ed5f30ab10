"""Check whether this host can give a device of its own to a guest.

Follows Documentation/driver-api/vfio.rst in Linux, and sysfs-bus-usb in Documentation/ABI.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from kmlab.common.errors import LabError
from kmlab.common.events import printable

_SYS, _DEV = Path("/sys"), Path("/dev")


def check_pci_device(address: str, memory: int, sys: Path = _SYS, dev: Path = _DEV) -> None:
    """Raise LabError unless a guest with so much memory can get the PCI device at this address through vfio."""
    what = f"the PCI device {address} of this host cannot be given to a guest"
    device = sys / "bus/pci/devices" / address
    if not device.exists():
        raise LabError(f"{what}: there is no such device", "lspci -D lists the devices of this host")
    if not (device / "iommu_group").exists():
        raise LabError(
            f"{what}: this host has no IOMMU in use",
            "switch on VT-d or AMD-Vi in the firmware; with Intel, also boot the host with intel_iommu=on",
        )
    driver = _name_of(device / "driver")
    if driver != "vfio-pci":
        raise LabError(
            f"{what}: it is bound to {f'the driver {driver}' if driver else 'no driver'}, and must be to vfio-pci",
            f"as root: modprobe vfio-pci; driverctl set-override {address} vfio-pci",
        )
    _check_group(what, device / "iommu_group")
    group = dev / "vfio" / _name_of(device / "iommu_group")
    if not os.access(group, os.R_OK | os.W_OK):
        raise LabError(
            f"{what}: you may not open {group}", "give your user the right with a udev rule; do not run kmlab as root"
        )
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.geteuid() != 0 and limit != resource.RLIM_INFINITY and limit < memory + (128 << 20):
        raise LabError(
            f"{what}: you may lock {limit >> 20} MiB of memory, and the guest has {memory >> 20} MiB",
            "raise memlock for your user in /etc/security/limits.conf",
        )


def _check_group(what: str, group: Path) -> None:
    """Raise LabError if another device of the same IOMMU group has a driver of this host."""
    for other in sorted((group / "devices").iterdir()) if (group / "devices").is_dir() else ():
        driver = _name_of(other / "driver")
        if driver not in ("", "vfio-pci", "pcieport", "pci-stub"):
            raise LabError(
                f"{what}: {other.name} is in the same IOMMU group and bound to the driver {driver}",
                "bind all devices of the group to vfio-pci, or use another slot",
            )


def check_usb_device(identity: str, sys: Path = _SYS, dev: Path = _DEV) -> None:
    """Raise LabError unless this user can give the USB device `vendor:product` to a guest."""
    what = f"the USB device {identity} of this host cannot be given to a guest"
    vendor, product = identity.split(":")
    devices = sorted((sys / "bus/usb/devices").iterdir()) if (sys / "bus/usb/devices").is_dir() else []
    found = [each for each in devices if (_read(each / "idVendor"), _read(each / "idProduct")) == (vendor, product)]
    if not found:
        raise LabError(f"{what}: there is no such device", "lsusb lists the devices of this host")
    if len(found) > 1:
        raise LabError(f"{what}: there are {len(found)} of them", "unplug the others")
    numbers = [_read(found[0] / name) for name in ("busnum", "devnum")]
    node = dev / "bus/usb" / "/".join(number.zfill(3) for number in numbers)
    if not os.access(node, os.R_OK | os.W_OK):
        raise LabError(
            f"{what}: you may not open {node}",
            f'a udev rule gives you the right: SUBSYSTEM=="usb", ATTR{{idVendor}}=="{vendor}", '
            f'ATTR{{idProduct}}=="{product}", TAG+="uaccess"',
        )


def _name_of(link: Path) -> str:
    try:
        return printable(Path(os.readlink(link)).name, 60)
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
