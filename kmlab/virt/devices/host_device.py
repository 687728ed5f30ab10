"""Describe devices of this host that a guest gets: it then has them alone."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Annotated, ClassVar

from kmlab.config.yaml.types import word
from kmlab.virt.devices.device import Device, Place

PciAddress = Annotated[
    str,
    word("([0-9a-f]{4}:)?[0-9a-f]{2}:[0-1][0-9a-f]\\.[0-7]", "a PCI address such as 0000:03:00.0", "lspci lists them"),
]
UsbId = Annotated[
    str,
    word("[0-9a-f]{4}:[0-9a-f]{4}", "the vendor and product of a USB device, such as 0403:6001", "lsusb lists them"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDevice(Device):
    """A device of this host."""

    @property
    def in_checkpoint(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Vfio(HostDevice):
    """A PCI device of this host, through vfio (Documentation/driver-api/vfio.rst)."""

    kind: ClassVar[str] = "vfio"

    address: PciAddress

    @property
    def whole_address(self) -> str:
        """Return the address with its domain."""
        return self.address if self.address.count(":") == 2 else f"0000:{self.address}"

    def elements(self, place: Place) -> list[ET.Element]:
        domain, bus, rest = self.whole_address.split(":")
        slot, function = rest.split(".")
        device = ET.Element("hostdev", mode="subsystem", type="pci", managed="no")
        source = ET.SubElement(device, "source")
        numbers = {"domain": domain, "bus": bus, "slot": slot, "function": function}
        ET.SubElement(source, "address", {name: f"0x{value}" for name, value in numbers.items()})
        return [device]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUsb(HostDevice):
    """A USB device of this host."""

    kind: ClassVar[str] = "hostusb"

    id: UsbId

    @property
    def controller(self) -> str:
        return "usb"

    def elements(self, place: Place) -> list[ET.Element]:
        vendor, product = self.id.split(":")
        device = ET.Element("hostdev", mode="subsystem", type="usb", managed="no")
        source = ET.SubElement(device, "source")
        ET.SubElement(source, "vendor", id=f"0x{vendor}")
        ET.SubElement(source, "product", id=f"0x{product}")
        return [device]
