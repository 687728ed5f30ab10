"""Describe disks of all buses. They are empty, and empty again after each restore."""

from __future__ import annotations

import string
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from kmlab.config.yaml.types import size
from kmlab.virt.devices.device import Command, Device, Place, Plug, Socket
from kmlab.virt.devices.pci import on_pci

DiskSize = Annotated[int, size("1M", "1T")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk(Device):
    """An empty disk."""

    kind: ClassVar[str] = "disk"

    size: DiskSize = 1 << 30
    bus: Literal["virtio", "scsi", "sata", "usb"] = "virtio"

    @property
    def label(self) -> str:
        return "disk" if self.bus == "virtio" else f"{self.bus}-disk"

    @property
    def controller(self) -> str:
        return self.bus if self.bus in ("scsi", "usb") else ""

    @property
    def file_size(self) -> int | None:
        return self.size

    @property
    def pluggable(self) -> bool:
        return self.bus != "sata"

    def elements(self, place: Place) -> list[ET.Element]:
        return [disk_element(place, self.bus)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvme(Device):
    """An empty NVMe disk."""

    kind: ClassVar[str] = "nvme"

    size: DiskSize = 1 << 30

    @property
    def in_checkpoint(self) -> bool:
        return False  # "State blocked by non-migratable device"

    @property
    def socket(self) -> str:
        return "pci"

    @property
    def file_size(self) -> int | None:
        return self.size

    def plug(self, place: Place, socket: Socket) -> Plug:
        node = f"{place.id}-file"
        file = {"driver": "file", "filename": str(place.file)}
        return Plug(
            before=[Command("blockdev-add", {"driver": "raw", "node-name": node, "file": file})],
            device=on_pci(place, socket, driver="nvme", drive=node, serial=place.id),
            after=[Command("blockdev-del", {"node-name": node})],
        )


def disk_element(place: Place, bus: str) -> ET.Element:
    """Return libvirt's XML of a disk."""
    disk = ET.Element("disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="raw", cache="unsafe", discard="unmap")
    ET.SubElement(disk, "source", file=str(place.file))
    # libvirt only orders disks by this name. vda is the root, vdb the seed of a first boot.
    rest, last = divmod(place.position + 2, len(string.ascii_lowercase))
    letter = string.ascii_lowercase[rest - 1 : rest] + string.ascii_lowercase[last]
    ET.SubElement(disk, "target", dev=f"{'vd' if bus == 'virtio' else 'sd'}{letter}", bus=bus)
    ET.SubElement(disk, "serial").text = place.id
    if bus in ("scsi", "sata"):
        unit = str(place.number - 1)
        ET.SubElement(disk, "address", type="drive", controller="0", bus="0", target="0", unit=unit)
    return disk
