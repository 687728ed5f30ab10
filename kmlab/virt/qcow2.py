"""Check the header of a qcow2 file before QEMU opens it (QEMU's docs/interop/qcow2.txt).

A disk image can refer to other files of the host, as its backing file or data file, and QEMU would open them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from kmlab.common.errors import ImageError

HEAD = 1 << 16
"""Bytes from the beginning that `check` needs; the whole file if it is smaller."""
LARGEST = 256 << 30
"""The largest accepted disk, in bytes. Cloud images are much smaller."""
MAGIC = b"QFI\xfb"

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_HARMLESS = _COMPRESSION | _EXTENDED_L2
_FORBIDDEN = {0xE2792ACA: "a backing file", 0x44415441: "a data file of its own", 0x0537BE77: "encryption"}
"""Forbidden header extensions by number. All others can be ignored safely."""


@dataclass(frozen=True, slots=True)
class Header:
    """The checked values of a header."""

    version: int
    virtual_size: int
    """Bytes of the guest's disk."""


def check(head: bytes, size: int, what: str) -> Header:
    """Check a file of `size` bytes that begins with `head`. Raise ImageError if QEMU must not open it."""

    def refuse(why: str) -> ImageError:
        return ImageError(f"{what}: kmlab does not open this disk image: {why}")

    if head[:4] != MAGIC:
        raise refuse("it is not a qcow2 file")
    if len(head) < _V2.size:
        raise refuse("its header is truncated")
    _, version, backing, backing_size, cluster_bits, virtual, encryption, *tables = _V2.unpack_from(head)
    l1_size, l1, refcounts, refcount_clusters, snapshots, _ = tables
    if version not in (2, 3):
        raise refuse(f"qcow2 version {version} is not supported")
    if backing or backing_size:
        raise refuse("it has a backing file")
    if not 9 <= cluster_bits <= 21:
        raise refuse(f"its clusters have 2^{cluster_bits} bytes")
    if encryption:
        raise refuse("it is encrypted")
    if snapshots:
        raise refuse("it has snapshots")
    if not 0 < virtual <= LARGEST:
        raise refuse(f"its disk has {virtual} bytes; the limit is {LARGEST >> 30} GiB")
    cluster = 1 << cluster_bits
    for name, offset, length in (("L1", l1, l1_size * 8), ("refcount", refcounts, refcount_clusters * cluster)):
        if offset % cluster or offset < cluster or offset + length > size:
            raise refuse(f"its {name} table lies outside of the file")
    if l1_size * (cluster // 8) * cluster < virtual:
        raise refuse("its L1 table is too small for its disk")
    extensions = _V2.size
    if version == 3:
        if len(head) < _V2.size + _V3.size:
            raise refuse("its header is truncated")
        incompatible, _, _, refcount_order, extensions = _V3.unpack_from(head, _V2.size)
        if incompatible & _DATA_FILE:
            raise refuse("its data is in another file")
        if incompatible & (_DIRTY | _CORRUPT):
            raise refuse("it was not closed properly, or is marked as corrupt")
        if incompatible & ~_HARMLESS:
            raise refuse(f"it needs unknown features (0x{incompatible:x})")
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
