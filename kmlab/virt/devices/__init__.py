"""Describe devices that a lab gives to a guest. A kind is a class, and a line here."""

from __future__ import annotations

from kmlab.virt.devices.chips import I2c, SerialPort, Sound, Tpm, Watchdog
from kmlab.virt.devices.device import Device
from kmlab.virt.devices.host_device import HostUsb, Vfio
from kmlab.virt.devices.nic import Nic
from kmlab.virt.devices.pci import Edu, Ivshmem
from kmlab.virt.devices.storage import Disk, Nvme
from kmlab.virt.devices.usb import Usb

__all__ = ["KINDS", "Device"]

KINDS: tuple[type[Device], ...] = (
    *(Edu, Ivshmem),
    *(Disk, Nvme),
    Nic,
    Usb,
    *(SerialPort, I2c, Watchdog, Sound, Tpm),
    *(Vfio, HostUsb),
)
