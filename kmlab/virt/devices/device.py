"""Describe one device of a guest as a value: what libvirt's XML says of it, or how QEMU gets it while the guest runs.

A kind of device is a subclass, with the keys of lab.yaml as its fields.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

X86 = "x86_64"
ARM = "aarch64"


class Place(NamedTuple):
    """What a device depends on beside its own keys: its guest, and its name there."""

    name: str
    """Its name in the guest: nvme, nvme-2."""
    folder: Path
    """The folder of the guest's files."""
    position: int = 0
    """Its position among the guest's devices."""
    number: int = 1
    """The same among those with the same label."""
    link: tuple[int, int] | None = None
    """The UDP ports on 127.0.0.1 of a network card, and of the card at the other end of its cable."""

    @property
    def id(self) -> str:
        """Return QEMU's id of the device."""
        return f"kmlab-{self.name}"

    @property
    def file(self) -> Path:
        """Return the file with the device's content, if it has one."""
        return self.folder / f"device-{self.name}.img"

    @property
    def mac(self) -> str:
        """Return the hardware address of a network card; no other card of the host's guests has the same."""
        digest = hashlib.sha256(f"{self.folder}/{self.name}".encode("utf-8", "surrogateescape")).hexdigest()
        return ":".join(("52:54:00", *re.findall("..", digest[:6])))


class Socket(NamedTuple):
    """Where a device is plugged in while the guest runs."""

    bus: str
    """QEMU's name of the bus: pci.9, usb.0."""
    port: int = 0
    """The port of a USB bus."""


class Command(NamedTuple):
    """A command of QEMU's machine protocol (https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html)."""

    execute: str
    arguments: Mapping[str, object]


class Plug(NamedTuple):
    """How a device is plugged in while the guest runs: libvirt's XML, or commands for QEMU where libvirt has none."""

    elements: Sequence[ET.Element] = ()
    before: Sequence[Command] = ()
    """Make what the device needs on the host's side."""
    device: Command | None = None
    after: Sequence[Command] = ()
    """Remove that again, when the device is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device of a guest. A kind states what differs from this one."""

    kind: ClassVar[str] = ""
    """Its name in lab.yaml."""

    @property
    def label(self) -> str:
        """Return the name of the first such device in a guest."""
        return self.kind

    @property
    def architectures(self) -> tuple[str, ...]:
        return (X86, ARM)

    @property
    def programs(self) -> tuple[str, ...]:
        """Return the programs of the host that it needs."""
        return ()

    @property
    def in_checkpoint(self) -> bool:
        """Return whether QEMU can save it. Other devices are plugged in after each restore."""
        return True

    @property
    def controller(self) -> str:
        """Return the controller that the guest needs for it: usb, scsi, or empty."""
        return ""

    @property
    def socket(self) -> str:
        """Return the bus on which kmlab chooses its socket: pci, usb, or empty if libvirt chooses."""
        return ""

    @property
    def file_size(self) -> int | None:
        """Return the bytes of the file with its content; None if it has no file."""
        return None

    @property
    def pluggable(self) -> bool:
        """Return whether it can be plugged in and out while the guest runs."""
        return True

    def elements(self, place: Place) -> list[ET.Element]:
        """Return libvirt's XML of it; none if libvirt has none (formatdomain.html, "Devices")."""
        return []

    def arguments(self, place: Place) -> list[str]:
        """Return QEMU's options for a device of the checkpoint for which libvirt has no XML."""
        return []

    def plug(self, place: Place, socket: Socket) -> Plug:
        """Return how it is plugged in while the guest runs."""
        return Plug(self.elements(place))
