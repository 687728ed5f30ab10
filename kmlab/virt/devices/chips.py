"""Describe devices that are part of the machine, so that they cannot be plugged in while it runs."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from kmlab.config.yaml.types import word
from kmlab.virt.devices.device import ARM, X86, Device, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip(Device):
    """A device of the machine."""

    @property
    def pluggable(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialPort(Chip):
    """A further serial port. Its other end is a pty of this host, which `kmlab device list` shows."""

    kind: ClassVar[str] = "serial"

    model: Literal["isa", "pci"] = "isa"
    """isa is the PC's own; a guest has at most three more of these."""

    @property
    def architectures(self) -> tuple[str, ...]:
        return (X86,) if self.model == "isa" else (X86, ARM)

    def elements(self, place: Place) -> list[ET.Element]:
        serial = ET.Element("serial", type="pty")
        ET.SubElement(serial, "target", type=f"{self.model}-serial", port=str(place.number))
        return [serial]


@dataclass(frozen=True, slots=True, kw_only=True)
class I2c(Chip):
    """A chip on the PC's SMBus. Which ones there are depends on QEMU: `qemu-system-x86_64 -device help`."""

    kind: ClassVar[str] = "i2c"

    device: Annotated[str, word("[a-z0-9][a-z0-9-]{0,40}", "QEMU's name of an I2C device, such as i2c-ddc")] = "i2c-ddc"
    address: Annotated[str, word("0x[0-7][0-9a-fA-F]", "an I2C address from 0x03 to 0x77")] = "0x50"

    @property
    def architectures(self) -> tuple[str, ...]:
        return (X86,)

    def arguments(self, place: Place) -> list[str]:
        return ["-device", f"{self.device},id={place.id},bus=i2c,address={self.address}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchdog(Chip):
    """A watchdog timer."""

    kind: ClassVar[str] = "watchdog"

    model: Literal["i6300esb", "ib700"] = "i6300esb"
    action: Literal["inject-nmi", "reset", "none"] = "inject-nmi"
    """What happens when it runs out. A reset ends the guest."""

    @property
    def architectures(self) -> tuple[str, ...]:
        return (X86,)

    def elements(self, place: Place) -> list[ET.Element]:
        return [ET.Element("watchdog", model=self.model, action=self.action)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound(Chip):
    """A sound card, which plays to nobody."""

    kind: ClassVar[str] = "sound"

    model: Literal["ich9", "ich6", "ac97", "es1370"] = "ich9"

    @property
    def architectures(self) -> tuple[str, ...]:
        return (X86,)

    def elements(self, place: Place) -> list[ET.Element]:
        return [ET.Element("sound", model=self.model)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tpm(Chip):
    """A TPM 2.0, emulated by swtpm."""

    kind: ClassVar[str] = "tpm"

    model: Literal["crb", "tis"] = "crb"

    @property
    def architectures(self) -> tuple[str, ...]:
        return (X86,) if self.model == "crb" else (X86, ARM)

    @property
    def programs(self) -> tuple[str, ...]:
        return ("swtpm", "swtpm_setup")

    def elements(self, place: Place) -> list[ET.Element]:
        tpm = ET.Element("tpm", model=f"tpm-{self.model}")
        ET.SubElement(tpm, "backend", type="emulator", version="2.0")
        return [tpm]
