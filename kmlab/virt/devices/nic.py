"""Describe further network cards, and the cable between two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from kmlab.config.yaml.types import Name
from kmlab.virt.devices.device import Command, Device, Place, Plug, Socket
from kmlab.virt.devices.pci import on_pci

_MODELS = {"virtio": "virtio-net-pci"}
"""QEMU's names that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic(Device):
    """A network card. It is connected to the other card with the same `network`, or to nothing."""

    kind: ClassVar[str] = "nic"

    model: Literal["virtio", "e1000", "e1000e", "igb", "rtl8139", "vmxnet3", "pcnet", "ne2k_pci", "tulip"] = "virtio"
    network: Name | None = None
    """Two cards of the lab with the same name are the ends of one cable, which leads nowhere else."""

    @property
    def in_checkpoint(self) -> bool:
        return False  # libvirt cannot plug in a card with such a cable, and its ports belong to one guest

    @property
    def socket(self) -> str:
        return "pci"

    def plug(self, place: Place, socket: Socket) -> Plug:
        here, there = place.link or (0, 0)
        net = f"{place.id}-net"
        cable = {"type": "socket", "udp": f"127.0.0.1:{there}", "localaddr": f"127.0.0.1:{here}"}
        back_end = cable if place.link else {"type": "hubport", "hubid": place.position + 1}
        model = _MODELS.get(self.model, self.model)
        return Plug(
            before=[Command("netdev_add", {"id": net, **back_end})],
            device=on_pci(place, socket, driver=model, netdev=net, mac=place.mac, romfile=""),
            after=[Command("netdev_del", {"id": net})],
        )
