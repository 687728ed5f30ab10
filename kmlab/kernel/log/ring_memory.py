"""Read the kernel's ring buffer out of a guest's memory, where neither its console nor a program in it can say it.

Follows kernel/printk/printk_ringbuffer.c. Where the fields of its structures lie is in VMCOREINFO, which the kernel
keeps in its memory (Documentation/admin-guide/kdump/vmcoreinfo.rst). The ring buffer has had this form since Linux
commit 896fbe20b4e2 ("printk: use the lockless ringbuffer") in v5.10.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping

from kmlab.kernel.log.records import KernelLog, parse_log

Read = Callable[[int, int], bytes]
"""Returns so many bytes at a virtual address of the kernel."""
_POINTER = 8
_MOST_INFO = 1 << 16
_MOST_DESCRIPTORS = 1 << 20
_LARGEST_TEXT = 1 << 26
"""Bytes; a damaged structure must not ask for all of the memory."""
_COMMITTED, _FINALIZED = 1, 2
_BLANK = 1
"""The lowest bit of a position of a record that has no text."""


class UnknownLayout(Exception):
    """The memory does not hold a ring buffer in the form that is known here."""


def read_ring(read: Read, symbols: Mapping[str, int]) -> KernelLog:
    """Return the records of the ring buffer, given the addresses of the kernel's symbols.

    UnknownLayout if it cannot be found.
    """
    try:
        return _read_ring(read, _Layout(_vmcoreinfo(read, symbols)))
    except (KeyError, ValueError, struct.error) as error:
        raise UnknownLayout(f"no ring buffer was found in the guest's memory: {error}") from None


class _Layout:
    """Where the fields of the kernel's structures lie."""

    def __init__(self, info: str) -> None:
        self._sizes = {name: int(size) for name, size in re.findall(r"^SIZE\((\w+)\)=(\d{1,9})$", info, re.MULTILINE)}
        self._offsets = {at: int(n) for at, n in re.findall(r"^OFFSET\(([\w.]+)\)=(\d{1,9})$", info, re.MULTILINE)}
        ring = re.search(r"^SYMBOL\(prb\)=([0-9a-f]{1,16})$", info, re.MULTILINE)
        if ring is None:
            raise KeyError("SYMBOL(prb)")
        self.prb = int(ring[1], 16)
        """The address of the pointer to the ring buffer."""

    def size(self, name: str) -> int:
        return self._sizes[name]

    def offset(self, name: str) -> int:
        return self._offsets[name]


def _vmcoreinfo(read: Read, symbols: Mapping[str, int]) -> str:
    place = _word(read(symbols["vmcoreinfo_data"], _POINTER))
    size = _word(read(symbols["vmcoreinfo_size"], _POINTER))
    return read(place, min(size, _MOST_INFO)).decode("ascii", "replace")


def _read_ring(read: Read, layout: _Layout) -> KernelLog:
    ring = read(_word(read(layout.prb, _POINTER)), layout.size("printk_ringbuffer"))
    table = ring[layout.offset("printk_ringbuffer.desc_ring") :]
    text_ring = ring[layout.offset("printk_ringbuffer.text_data_ring") :]
    count = _bounded(1 << (_int(table, layout.offset("prb_desc_ring.count_bits")) & 63), _MOST_DESCRIPTORS)
    text_size = _bounded(1 << (_int(text_ring, layout.offset("prb_data_ring.size_bits")) & 63), _LARGEST_TEXT)
    desc_size, info_size = layout.size("prb_desc"), layout.size("printk_info")
    descs = read(_at(table, layout.offset("prb_desc_ring.descs")), count * desc_size)
    infos = read(_at(table, layout.offset("prb_desc_ring.infos")), count * info_size)
    texts = read(_at(text_ring, layout.offset("prb_data_ring.data")), text_size)
    number, last = (_at(table, layout.offset(f"prb_desc_ring.{name}")) for name in ("tail_id", "head_id"))
    lines = []
    for _ in range(count):
        desc = descs[number % count * desc_size :][:desc_size]
        info = infos[number % count * info_size :][:info_size]
        if _at(desc, layout.offset("prb_desc.state_var")) >> 62 & 3 in (_COMMITTED, _FINALIZED):
            lines.append(_record(layout, info, desc, texts))
        if number == last:
            break
        number = (number + 1) & ((1 << 62) - 1)
    return parse_log(b"".join(lines))


def _record(layout: _Layout, info: bytes, desc: bytes, texts: bytes) -> bytes:
    """Return one record in the form of /dev/kmsg."""
    position = layout.offset("prb_desc.text_blk_lpos")
    begin = _at(desc, position + layout.offset("prb_data_blk_lpos.begin"))
    end = _at(desc, position + layout.offset("prb_data_blk_lpos.next"))
    sequence = _at(info, layout.offset("printk_info.seq"))
    microseconds = _at(info, layout.offset("printk_info.ts_nsec")) // 1000
    field = layout.offset("printk_info.text_len")
    length, facility, flags = struct.unpack_from("<HBB", info, field)
    text = b""
    if not begin & _BLANK:
        begin, end = begin % len(texts), end % len(texts)
        # A block that would not fit at the end of the ring begins at its start; each begins with its number.
        begin = (0 if begin > end else begin) + _POINTER
        text = texts[begin : min(begin + length, end)]
    # The level is in the upper three bits of the flags' byte (struct printk_info).
    priority = facility << 3 | flags >> 5
    escaped = b"".join(bytes([c]) if c >= 0x20 and c != 0x5C else b"\\x%02x" % c for c in text)
    return b"%d,%d,%d,-;%s\n" % (priority, sequence, microseconds, escaped)


def _bounded(number: int, most: int) -> int:
    if not 0 < number <= most:
        raise ValueError(f"{number} is no size of a ring buffer")
    return number


def _word(content: bytes) -> int:
    return _at(content, 0)


def _at(content: bytes, offset: int) -> int:
    return int(struct.unpack_from("<Q", content, offset)[0])


def _int(content: bytes, offset: int) -> int:
    return int(struct.unpack_from("<I", content, offset)[0])
