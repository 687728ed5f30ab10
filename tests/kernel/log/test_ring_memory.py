"""The kernel's ring buffer read out of memory: a made-up memory with the structures of Linux 6.1."""

from __future__ import annotations

import contextlib
import struct

import pytest

from kmlab.kernel.log.ring_memory import UnknownLayout, read_ring

COUNT, TEXT = 4, 256
SYMBOLS = {"vmcoreinfo_data": 0x1000, "vmcoreinfo_size": 0x1008}
INFO = """\
OSRELEASE=6.1.0
SYMBOL(prb)=1010
SIZE(printk_ringbuffer)=88
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=40
SIZE(prb_desc_ring)=40
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
SIZE(prb_desc)=24
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
SIZE(printk_info)=88
OFFSET(printk_info.seq)=0
OFFSET(printk_info.ts_nsec)=8
OFFSET(printk_info.text_len)=16
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
"""


class Memory:
    """Pieces of memory by their address."""

    def __init__(self, texts: list[tuple[int, bytes]], info: str = INFO) -> None:
        descs, infos, data, at = b"", b"", bytearray(TEXT), 0
        for number, (priority, text) in enumerate(texts):
            size = 8 + (len(text) + 7) // 8 * 8
            data[at + 8 : at + 8 + len(text)] = text
            descs += struct.pack("<QQQ", 2 << 62 | number, at, at + size)
            levels = struct.pack("<HBB", len(text), priority >> 3, (priority & 7) << 5)
            infos += (struct.pack("<QQ", number, (number + 1) * 500_000_000) + levels).ljust(88, b"\0")
            at += size
        ring = struct.pack("<IIQQQQ", 2, 0, 0x3000, 0x4000, len(texts) - 1, 0)
        ring += struct.pack("<IIQ", 8, 0, 0x5000)
        self.pieces = {
            0x1000: struct.pack("<Q", 0x1100),
            0x1008: struct.pack("<Q", len(info)),
            0x1010: struct.pack("<Q", 0x2000),
            0x1100: info.encode(),
            0x2000: ring.ljust(88, b"\0"),
            0x3000: descs.ljust(COUNT * 24, b"\0"),
            0x4000: infos.ljust(COUNT * 88, b"\0"),
            0x5000: bytes(data),
        }

    def read(self, address: int, size: int) -> bytes:
        content = self.pieces.get(address, b"")
        if len(content) < size:
            raise UnknownLayout(f"no {size} bytes at {address:#x}")
        return content[:size]


def test_records_come_with_level_facility_and_time() -> None:
    memory = Memory([(6, b"Hello, world."), (3, b"two\nlines \\ and a \t tab"), (13, b"from a program")])
    log = read_ring(memory.read, SYMBOLS)
    assert [(r.time, r.level, r.facility, r.text) for r in log.records] == [
        (0.5, "info", 0, "Hello, world."),
        (1.0, "err", 0, "two"),
        (1.0, "err", 0, "lines \\ and a \t tab"),
        (1.5, "notice", 1, "from a program"),
    ]


@pytest.mark.parametrize("missing", ["SYMBOL(prb)", "SIZE(prb_desc)", "OFFSET(printk_info.text_len)"])
def test_a_kernel_without_a_known_layout_is_an_error(missing: str) -> None:
    info = "".join(line for line in INFO.splitlines(keepends=True) if not line.startswith(missing))
    with pytest.raises(UnknownLayout):
        read_ring(Memory([(6, b"x")], info).read, SYMBOLS)


def test_memory_that_holds_anything_raises_nothing_else() -> None:
    whole, read = Memory([(6, b"Hello"), (6, b"again")]), 0
    for address, content in list(whole.pieces.items()):
        for at in range(0, min(len(content), 400), 3):
            damaged = Memory([(6, b"Hello"), (6, b"again")])
            damaged.pieces[address] = content[:at] + b"\xff" + content[at + 1 :]
            with contextlib.suppress(UnknownLayout):
                read += len(read_ring(damaged.read, SYMBOLS)) > 0
    assert read > 0


def test_no_symbols_is_an_error() -> None:
    with pytest.raises(UnknownLayout):
        read_ring(Memory([(6, b"x")]).read, {})
