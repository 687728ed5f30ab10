"""Choose what a guest's network card is connected to (qemu(1), "-netdev user").

libvirt's XML has no way to restrict QEMU's user network, so kmlab gives QEMU these two options itself. The card is the
same for every choice, so that guests with different networks restore the same checkpoint.
"""

from __future__ import annotations

NETDEV = "kmlab-net"
"""The id of QEMU's network back end."""

OPEN = "host"
"""Connections go wherever the user of the host can connect, and 10.0.2.2 is the host itself."""
ISOLATED = "isolated"
"""The guest cannot connect to anything. Forwarded ports work (`restrict=on` in qemu(1))."""
NONE = "none"
"""Isolated, without forwarded ports, and the card's cable is unplugged."""

_CARD = {
    "netdev": NETDEV,
    "id": "kmlab-card",
    "mac": "52:54:00:6b:6d:01",
    "bus": "pcie.0",
    "addr": "0x10",  # libvirt fills the slots of the machine from 0x1 on
    "romfile": "",
    "disable-legacy": "on",
}


def back_end(network: str) -> str:
    """Return the value of QEMU's option `-netdev` for a choice."""
    # IPv6 is off, because `restrict` was made for IPv4.
    return f"user,id={NETDEV}" + ("" if network == OPEN else ",restrict=on,ipv6=off")


def options(network: str) -> list[str]:
    """Return QEMU's options for the network card and what it is connected to."""
    card = ",".join(f"{name}={value}" for name, value in _CARD.items())
    return ["-netdev", back_end(network), "-device", f"virtio-net-pci,{card}"]
