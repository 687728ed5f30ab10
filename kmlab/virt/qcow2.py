"""The header of a qcow2 file, looked at before QEMU is shown the file (QEMU's docs/interop/qcow2.txt).

A disk image can name other files of the host, as its backing file or its data file, and QEMU would open them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from kmlab.common.errors import ImageError

HEAD = 1 << 16
"""Bytes from the beginning that `check` wants to see, or the whole file where it is smaller."""
LARGEST = 256 << 30
"""Bytes of the disk that a guest would see; nobody's cloud image comes near."""
MAGIC = b"QFI\xfb"

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_HARMLESS = _COMPRESSION | _EXTENDED_L2
_FORBIDDEN = {0xE2792ACA: "a backing file", 0x44415441: "a data file of its own", 0x0537BE77: "encryption"}
"""Header extensions by their numbers. Those that are not known say nothing that must be obeyed."""


@dataclass(frozen=True, slots=True)
class Header:
    """What may be relied on, once it is checked."""

    version: int
    virtual_size: int
    """Bytes of the guest's disk."""


def check(head: bytes, size: int, what: str) -> Header:
    """The header of a file of `size` bytes that begins with `head`; ImageError if QEMU should not see it."""

    def refuse(why: str) -> ImageError:
        return ImageError(f"{what}: not a disk image that kmlab opens: {why}")

    if head[:4] != MAGIC:
        raise refuse("it does not begin as a qcow2 file does")
    if len(head) < _V2.size:
        raise refuse("it ends within its header")
    _, version, backing, backing_size, cluster_bits, virtual, encryption, *tables = _V2.unpack_from(head)
    l1_size, l1, refcounts, refcount_clusters, snapshots, _ = tables
    if version not in (2, 3):
        raise refuse(f"qcow2 version {version} is not known")
    if backing or backing_size:
        raise refuse("it stands on a backing file")
    if not 9 <= cluster_bits <= 21:
        raise refuse(f"clusters of 2^{cluster_bits} bytes")
    if encryption:
        raise refuse("it is encrypted")
    if snapshots:
        raise refuse("it holds snapshots")
    if not 0 < virtual <= LARGEST:
        raise refuse(f"a disk of {virtual} bytes; at most {LARGEST >> 30} GiB are taken")
    cluster = 1 << cluster_bits
    for name, offset, length in (("L1", l1, l1_size * 8), ("refcount", refcounts, refcount_clusters * cluster)):
        if offset % cluster or offset < cluster or offset + length > size:
            raise refuse(f"its {name} table lies outside of the file")
    if l1_size * (cluster // 8) * cluster < virtual:
        raise refuse("its L1 table is too small for its disk")
    extensions = _V2.size
    if version == 3:
        if len(head) < _V2.size + _V3.size:
            raise refuse("it ends within its header")
        incompatible, _, _, refcount_order, extensions = _V3.unpack_from(head, _V2.size)
        if incompatible & _DATA_FILE:
            raise refuse("its data lies in another file")
        if incompatible & (_DIRTY | _CORRUPT):
            raise refuse("it was not closed well, or is marked as damaged")
        if incompatible & ~_HARMLESS:
            raise refuse(f"it needs features that are not known (0x{incompatible:x})")
        if refcount_order > 6 or not _V2.size + _V3.size <= extensions <= cluster:
            raise refuse("its header is damaged")
    _check_extensions(head[: min(cluster, size)], extensions, refuse)
    return Header(version, virtual)


def _check_extensions(head: bytes, offset: int, refuse: Callable[[str], ImageError]) -> None:
    while True:
        if offset + 8 > len(head):
            raise refuse("its header has no end")
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == 0:
            return
        if kind in _FORBIDDEN:
            raise refuse(f"it has {_FORBIDDEN[kind]}")
        offset += 8 + -(-length // 8) * 8
