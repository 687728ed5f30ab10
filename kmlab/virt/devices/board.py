"""Put the devices of a guest together: their names, controllers, and the sockets that are free."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from kmlab.common.errors import ConfigError, LabError
from kmlab.virt.devices.chips import SerialPort, Sound
from kmlab.virt.devices.device import Device, Place, Socket
from kmlab.virt.devices.storage import Disk
from kmlab.virt.devices.usb import PORTS, Usb, controllers

MOST = 16
"""Devices of a guest."""
_OWN_PORTS = 5
"""PCI Express ports beside one for each device: kmlab's own devices take three. Firmware needs time for each."""
_ISA_PORTS = 3
_SATA_PORTS = 6


def name_devices(devices: Sequence[Device]) -> dict[str, Device]:
    """Return the devices by name: nvme, nvme-2, usb-serial."""
    named: dict[str, Device] = {}
    for device in devices:
        named[free_name(device, named)] = device
    return named


def free_name(device: Device, taken: Collection[str]) -> str:
    """Return a name for one more device."""
    names = (device.label, *(f"{device.label}-{number}" for number in range(2, 2 * MOST + 2)))
    return next(name for name in names if name not in taken)


def place(name: str, folder: Path, index: int, link: tuple[int, int] | None = None) -> Place:
    """Return the place of the device with that name."""
    number = name.rpartition("-")[2]
    return Place(name, folder, index, int(number) if number.isdigit() else 1, link)


def check_devices(devices: Sequence[Device]) -> None:
    """Raise ConfigError if a guest cannot have all of these."""
    if len(devices) > MOST:
        raise ConfigError(f"has {len(devices)} devices, and {MOST} are possible")
    versions = {device.version for device in devices if isinstance(device, Usb)}
    if len(versions) > 1:
        raise ConfigError(f"has USB devices with {' and '.join(sorted(versions))}", "give all of them one `version`")
    ports = [device for device in devices if isinstance(device, SerialPort) and device.model == "isa"]
    if len(ports) > _ISA_PORTS:
        raise ConfigError(f"has {len(ports)} isa serial ports, and {_ISA_PORTS} are possible", "use `serial: pci`")
    sata = [device for device in devices if isinstance(device, Disk) and device.bus == "sata"]
    if len(sata) > _SATA_PORTS:
        raise ConfigError(f"has {len(sata)} sata disks, and {_SATA_PORTS} are possible", "use another bus")
    for kind in ("tpm", "watchdog"):
        if sum(device.kind == kind for device in devices) > 1:
            raise ConfigError(f"has two devices of the kind {kind}, and one is possible", "remove one")


def elements(devices: Mapping[str, Device], folder: Path) -> list[ET.Element]:
    """Return libvirt's XML of all devices that a checkpoint has, and of the controllers and ports for all of them."""
    if not devices:
        return [ET.Element("controller", type="usb", model="none")]
    needed = {device.controller for device in devices.values()}
    made: list[ET.Element] = []
    ports = _OWN_PORTS + len(needed & {"usb", "scsi"}) + len(devices)
    for index in range(1, ports + 1):
        made.append(ET.Element("controller", type="pci", index=str(index), model="pcie-root-port"))
    version = next((device.version for device in devices.values() if isinstance(device, Usb)), "xhci")
    made += controllers(version) if "usb" in needed else [ET.Element("controller", type="usb", model="none")]
    if "scsi" in needed:
        made.append(ET.Element("controller", type="scsi", index="0", model="virtio-scsi"))
    for index, (name, device) in enumerate(devices.items()):
        made += device.elements(place(name, folder, index)) if device.in_checkpoint else []
    if "usb" in needed or any(isinstance(device, Sound) for device in devices.values()):
        made.append(ET.Element("audio", id="1", type="none"))
    return made


def arguments(devices: Mapping[str, Device], folder: Path) -> list[str]:
    """Return QEMU's options for the devices that a checkpoint has and for which libvirt has no XML."""
    return [
        word
        for index, (name, device) in enumerate(devices.items())
        for word in device.arguments(place(name, folder, index))
    ]


def free_socket(bus: str, live: str, taken: Collection[Socket]) -> Socket:
    """Return a free socket of a running domain, from its XML. `taken` are those that libvirt does not know of.

    libvirt takes the first free one for its own devices, so this is the last one.
    """
    root = ET.fromstring(live)
    if bus == "usb":
        return _free_usb_port(root, taken)
    used = {int(address.get("bus", "0"), 16) for address in root.iterfind("devices/*/address[@type='pci']")}
    ports = (int(port.get("index", "0")) for port in root.iterfind("devices/controller[@model='pcie-root-port']"))
    names = [f"pci.{index}" for index in sorted(ports, reverse=True) if index not in used]
    free = [name for name in names if all(name != socket.bus for socket in taken)]
    if not free:
        raise LabError("this guest has no free PCI port", "list its devices under `devices:` in lab.yaml")
    return Socket(free[0])


def _free_usb_port(root: ET.Element, taken: Collection[Socket]) -> Socket:
    models = {controller.get("model", "") for controller in root.iterfind("devices/controller[@type='usb']")}
    ports = next((PORTS[name] for name in PORTS if any(name in model for model in models)), 0)
    used = {address.get("port", "") for address in root.iterfind("devices/*/address[@type='usb']")}
    used |= {str(socket.port) for socket in taken if socket.bus == "usb.0"}
    free = [port for port in range(ports, 0, -1) if str(port) not in used]
    if not free:
        message = "this guest has no free USB port" if ports else "this guest has no USB controller"
        raise LabError(message, "write `devices: [usb]` in lab.yaml" if not ports else "remove another USB device")
    return Socket("usb.0", free[0])
