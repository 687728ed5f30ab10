"""Describe USB controllers and what is plugged into them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import ClassVar, Literal

from kmlab.virt.devices.device import Command, Device, Place, Plug, Socket
from kmlab.virt.devices.storage import DiskSize, disk_element

PORTS = {"xhci": 15, "ehci": 6, "uhci": 2}
"""The ports of each controller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usb(Device):
    """A USB controller with a device, or with nothing plugged in."""

    kind: ClassVar[str] = "usb"

    device: Literal["none", "storage", "serial", "audio", "keyboard", "mouse", "tablet"] = "none"
    size: DiskSize = 1 << 30
    """Of the storage."""
    version: Literal["xhci", "ehci", "uhci"] = "xhci"
    """The controller: USB 3, 2 or 1. A guest has one for all its USB devices."""

    @property
    def label(self) -> str:
        return "usb" if self.device == "none" else f"usb-{self.device}"

    @property
    def in_checkpoint(self) -> bool:
        return self.device not in ("serial", "audio")  # QEMU cannot save these two

    @property
    def controller(self) -> str:
        return "usb"

    @property
    def socket(self) -> str:
        return "" if self.in_checkpoint else "usb"

    @property
    def file_size(self) -> int | None:
        return self.size if self.device == "storage" else None

    @property
    def pluggable(self) -> bool:
        return self.device != "none"

    def elements(self, place: Place) -> list[ET.Element]:
        if self.device == "none" or not self.in_checkpoint:
            return []
        if self.device == "storage":
            return [disk_element(place, "usb")]
        return [ET.Element("input", type=self.device, bus="usb")]

    def plug(self, place: Place, socket: Socket) -> Plug:
        if self.in_checkpoint:
            return Plug(self.elements(place))
        at = {"id": place.id, "bus": socket.bus, "port": str(socket.port)}
        if self.device == "audio":
            return Plug(device=Command("device_add", {**at, "driver": "usb-audio", "audiodev": "audio1"}))
        port = f"{place.id}-port"
        backend = {"type": "pty", "data": {}}
        return Plug(
            before=[Command("chardev-add", {"id": port, "backend": backend})],
            # Without always-plugged, the guest sees the device only while a program has the pty open.
            device=Command("device_add", {**at, "driver": "usb-serial", "chardev": port, "always-plugged": True}),
            after=[Command("chardev-remove", {"id": port})],
        )


def controllers(version: str) -> list[ET.Element]:
    """Return libvirt's XML of a USB controller; of USB 2, with its companions for slower devices."""
    if version == "xhci":
        return [ET.Element("controller", type="usb", index="0", model="qemu-xhci", ports=str(PORTS["xhci"]))]
    if version == "uhci":
        return [ET.Element("controller", type="usb", index="0", model="piix3-uhci")]
    made = [ET.Element("controller", type="usb", index="0", model="ich9-ehci1")]
    for number in (1, 2, 3):
        companion = ET.Element("controller", type="usb", index="0", model=f"ich9-uhci{number}")
        ET.SubElement(companion, "master", startport=str(2 * number - 2))
        made.append(companion)
    return made
