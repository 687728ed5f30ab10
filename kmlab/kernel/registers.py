"""Where each CPU of a silent guest is: QEMU's `info registers -a`, and the module's own code found by its bytes.

A module's text starts on a page (kernel/module/main.c, layout_sections), so an address in it fixes the offset in its
section up to the page, and the instruction bytes there say which. Nothing needs to be asked of the guest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kmlab.kernel.elf import ObjectFile, Section, read_object

PAGE = 4096
WINDOW = 64
"""Bytes of code that are compared, from the instruction on."""
_ENOUGH = 12
"""Bytes that must agree outside of what relocation changes."""

_CPU = re.compile(r"^CPU#(\d+)", re.MULTILINE)
_RIP = re.compile(r"\b(?:RIP|EIP|PC)=\s*([0-9a-f]+)")
_HALTED = re.compile(r"\bHLT=1\b")


@dataclass(frozen=True, slots=True)
class CpuState:
    """One vCPU."""

    cpu: int
    address: int
    """Its program counter."""
    halted: bool
    text: str
    """All that QEMU said of it."""


def parse_registers(text: str) -> list[CpuState]:
    """Every CPU in the answer to `info registers -a`."""
    starts = [(int(found[1]), found.start()) for found in _CPU.finditer(text)]
    states = []
    for index, (number, start) in enumerate(starts):
        part = text[start : starts[index + 1][1] if index + 1 < len(starts) else len(text)]
        found = _RIP.search(part)
        if found:
            states.append(CpuState(number, int(found[1], 16), bool(_HALTED.search(part)), part.strip()))
    return states


def parse_bytes(text: str) -> bytes:
    """The bytes in the answer to `x /64xb ADDRESS`."""
    return bytes(
        int(word, 16) for line in text.splitlines() for word in re.findall(r"0x([0-9a-f]{2})\b", line.partition(":")[2])
    )


def find_code(images: Mapping[str, bytes], address: int, code: bytes) -> tuple[str, str, int] | None:
    """The module (its path), the section and the offset in it whose bytes are `code` at `address`."""
    for path, image in images.items():
        elf = read_object(image, path)
        for section in elf.sections:
            if section.executable and section.size:
                offset = _offset_in(elf, section, address, code)
                if offset is not None:
                    return path, section.name, offset
    return None


def _offset_in(elf: ObjectFile, section: Section, address: int, code: bytes) -> int | None:
    content = elf.content(section)
    # The kernel also rewrites the instruction around a relocation: calls to __fentry__ become nops, for one.
    changed = {r.offset + i for r in elf.relocations(section) for i in range(-2, 8)}
    # The first text section of a module begins on a page; those behind it in the same layout do not.
    paged = range(address % PAGE, len(content), PAGE)
    for offsets in (paged, range(len(content))):
        agreeing = {offset: _agreeing(content, changed, offset, code) for offset in offsets}
        best = max(agreeing, key=agreeing.__getitem__, default=None)
        if best is not None and agreeing[best] >= min(_ENOUGH, max(1, (len(content) - best) // 2)):
            return best
    return None


def _agreeing(content: bytes, changed: set[int], offset: int, code: bytes) -> int:
    """How many bytes agree; 0 as soon as one that relocation leaves alone does not."""
    same = 0
    for at, byte in enumerate(code, offset):
        if at >= len(content):
            break
        if at in changed:
            continue
        if content[at] != byte:
            return 0
        same += 1
    return same
