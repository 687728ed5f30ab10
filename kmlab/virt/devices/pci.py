"""Describe QEMU's devices for those who write PCI drivers: edu and ivshmem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from kmlab.common.errors import ConfigError
from kmlab.config.yaml.types import Name, size
from kmlab.virt.devices.device import Command, Device, Place, Plug, Socket


@dataclass(frozen=True, slots=True, kw_only=True)
class Edu(Device):
    """QEMU's teaching device: registers, interrupts and DMA (docs/specs/edu.rst in QEMU)."""

    kind: ClassVar[str] = "edu"

    @property
    def in_checkpoint(self) -> bool:
        return False  # QEMU saves nothing of it, not even where its registers are

    @property
    def socket(self) -> str:
        return "pci"

    def plug(self, place: Place, socket: Socket) -> Plug:
        return Plug(device=on_pci(place, socket, driver="edu"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ivshmem(Device):
    """Memory that a guest shares with programs of this host, or with another guest (QEMU's docs/specs/ivshmem-spec)."""

    kind: ClassVar[str] = "ivshmem"

    size: Annotated[int, size("4K", "1G")] = 1 << 20
    """A power of two. More than 2M may not fit behind the port that the card is plugged into."""
    shared: Name | None = None
    """Guests of the lab that give the same name share the memory."""

    def __post_init__(self) -> None:
        if self.size & (self.size - 1):
            raise ConfigError("must have a power of two as its size", "such as 1M, 4M or 64M")

    @property
    def in_checkpoint(self) -> bool:
        return False  # the checkpoint would bring back old content, also for the guest at the other end

    @property
    def socket(self) -> str:
        return "pci"

    def plug(self, place: Place, socket: Socket) -> Plug:
        file = place.file.parent.parent / f"memory-{self.shared}.img" if self.shared else place.file
        memory = {"qom-type": "memory-backend-file", "id": f"{place.id}-memory", "mem-path": str(file)}
        return Plug(
            before=[Command("object-add", {**memory, "size": self.size, "share": True})],
            device=on_pci(place, socket, driver="ivshmem-plain", memdev=f"{place.id}-memory", master=True),
            after=[Command("object-del", {"id": f"{place.id}-memory"})],
        )


def on_pci(place: Place, socket: Socket, **properties: object) -> Command:
    """Return the command that plugs a device into a PCI Express port."""
    return Command("device_add", {"id": place.id, "bus": socket.bus, "addr": "0x0", **properties})
