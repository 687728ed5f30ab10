"""Decide where the devices of a guest get their files and cables, and whether this host can provide them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from kmlab.common.errors import LabError
from kmlab.config.lab import GuestSpec, Lab
from kmlab.host.disk import disks
from kmlab.host.hypervisor import host_devices
from kmlab.host.process import command, host_packages
from kmlab.provision.plan.plan import Plan, lab_files
from kmlab.virt.devices import Device, board
from kmlab.virt.devices.device import Place
from kmlab.virt.devices.host_device import HostUsb, Vfio
from kmlab.virt.devices.nic import Nic

QEMU_ARGS = "KMLAB_QEMU_ARGS"
_FIRST_PORT, _PORTS = 20_000, 12_000
"""UDP ports of cables, below those that the kernel hands out by itself (ip_local_port_range)."""


def check_devices(plan: Plan) -> None:
    """Raise ConfigError if the guest's machine cannot have its devices, LabError if this host cannot provide them."""
    where = ("guests", plan.spec.name.partition("@")[0], "devices")
    for name, device in plan.spec.named_devices.items():
        if plan.arch not in device.architectures:
            raise plan.lab.error(where, f"guest '{plan.spec.name}' is {plan.arch}, which has no device '{name}'")
        check_device(name, device, plan.spec.memory)
    if plan.spec.qemu_args and os.environ.get(QEMU_ARGS) != "1":
        raise LabError(
            f"guest '{plan.spec.name}' has qemu_args, which can read and write files of this host",
            f"read them in {plan.lab.file}; if you trust them, set {QEMU_ARGS}=1",
        )


def check_device(name: str, device: Device, memory: int) -> None:
    """Raise LabError if this host cannot provide a device."""
    for program in device.programs:
        try:
            command.find(program)
        except LabError:
            hint = host_packages.install_hint(program)
            raise LabError(f"device '{name}' needs {program}, which is not installed", hint) from None
    if isinstance(device, Vfio):
        host_devices.check_pci_device(device.whole_address, memory)
    if isinstance(device, HostUsb):
        host_devices.check_usb_device(device.id)


def place_of(lab: Lab, spec: GuestSpec, name: str, device: Device, index: int) -> Place:
    """Return the place of a device in the guest's own folder."""
    return board.place(name, lab_files(lab).guest(spec.name).root, index, _link(lab, spec, name, device))


def make_files(devices: Mapping[str, Device], folder: Path, *, in_checkpoint: bool | None = None) -> list[Path]:
    """Create the empty files of devices and return them; with `in_checkpoint`, only those that a checkpoint has."""
    made = []
    for index, (name, device) in enumerate(devices.items()):
        if device.file_size is not None and in_checkpoint in (None, device.in_checkpoint):
            made.append(board.place(name, folder, index).file)
            disks.make_empty(made[-1], device.file_size)
    return made


def _link(lab: Lab, spec: GuestSpec, name: str, device: Device) -> tuple[int, int] | None:
    """Return the UDP ports of a card's cable: its own, and that of the other end."""
    if not isinstance(device, Nic) or device.network is None:
        return None
    plain, at, kernel = spec.name.partition("@")
    ends = [
        (other.name, card)
        for other in lab.guests.values()
        for card, each in other.named_devices.items()
        if isinstance(each, Nic) and each.network == device.network and (other.name, card) != (plain, name)
    ]
    far_guest, far_card = ends[0] if ends else ("", "")
    root = str(lab_files(lab).root)
    return _port(root, spec.name, name), _port(root, f"{far_guest}{at}{kernel}", far_card)


def _port(*words: str) -> int:
    return _FIRST_PORT + zlib.crc32("/".join(words).encode("utf-8", "surrogateescape")) % _PORTS
