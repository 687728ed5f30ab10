"""Where each CPU of a silent guest is: QEMU's `info registers -a`, and the module's own code found by its bytes.

A module's text starts on a page (kernel/module/main.c, layout_sections), so an address in it fixes the offset in its
section up to the page, and the instruction bytes there say which. Nothing needs to be asked of the guest.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from kmlab.kernel.symbols.elf import MalformedModule, ObjectFile, Relocation, Section, read_object

PAGE = 4096
_WINDOW = 64
"""Bytes of code before and after the instruction that are compared."""
_ENOUGH = 12
"""Bytes that must agree outside of what relocation changes."""
_FEW = 6
"""The same where the place on the page fits and no byte differs."""
_LARGEST = 1 << 20
"""Bytes of a section in which the code is looked for at every place, some seconds' work."""
_ABSOLUTE = 1
_NOP = b"\x0f\x1f\x44\x00\x00"
"""What stands at a function's entry while nobody traces it, in the place of its call to __fentry__."""
_CALL_INDIRECT = b"\xff\x15"
_CALLS = (4, 11)
"""R_X86_64_PLT32 and _32S, as they stand in calls."""

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
    """Return the bytes in the answer to `x /64xb ADDRESS`."""
    return bytes(
        int(word, 16) for line in text.splitlines() for word in re.findall(r"0x([0-9a-f]{2})\b", line.partition(":")[2])
    )


def window(address: int) -> tuple[int, int]:
    """Where to read code around an address, without leaving its page, and how many bytes."""
    page = address - address % PAGE
    first = max(page, address - _WINDOW)
    return first, min(page + PAGE, address + _WINDOW) - first


def find_code(images: Mapping[str, bytes], address: int, code: bytes) -> tuple[str, str, int] | None:
    """Return the module (its path), section and offset of `address`; `code` is what `window` says to read."""
    for path, image in images.items():
        with contextlib.suppress(MalformedModule):
            elf = read_object(image, path)
            for section in elf.sections:
                if section.executable and section.size:
                    offset = _offset_in(elf, section, address, code)
                    if offset is not None:
                        return path, section.name, offset
    return None


def _offset_in(elf: ObjectFile, section: Section, address: int, code: bytes) -> int | None:
    content, relocations = bytearray(elf.content(section)), list(elf.relocations(section))
    changed = {at for relocation in relocations for at in _rewritten(relocation, content)}
    for relocation in relocations:
        if elf.symbols[relocation.symbol].name == "__fentry__":
            at = relocation.offset - 1
            if 0 <= at <= len(content) - len(_NOP):
                content[at : at + len(_NOP)] = _NOP
                changed -= set(range(at, at + len(_NOP)))
    before = address - window(address)[0]
    # The first text section of a module begins on a page, those behind it in the same layout do not. Where the page
    # offset fits already, few bytes are enough, and of many some may differ: alternatives leave no trace in the file.
    for offset in range(address % PAGE, len(content), PAGE):
        same, other = _compare(content, changed, offset - before, code)
        if same >= (_FEW if other == 0 else max(_ENOUGH, 4 * other)):
            return offset
    if len(content) > _LARGEST:
        return None
    exact = [o for o in range(len(content)) if _compare(content, changed, o - before, code)[1] == 0]
    exact = [o for o in exact if _compare(content, changed, o - before, code)[0] >= _ENOUGH]
    return exact[0] if len(exact) == 1 else None


def _rewritten(relocation: Relocation, content: bytes | bytearray) -> range:
    """Return the bytes that the kernel may change for one relocation.

    Calls may become other instructions: paravirtual ones turn into what they stand for.
    """
    indirect = content[max(0, relocation.offset - 2) : relocation.offset] == _CALL_INDIRECT
    before = 3 if relocation.type in _CALLS else 2 if indirect else 0
    return range(relocation.offset - before, relocation.offset + (8 if relocation.type == _ABSOLUTE else 4))


def _compare(content: bytes | bytearray, changed: set[int], offset: int, code: bytes) -> tuple[int, int]:
    """How many bytes agree and how many do not, of those that relocation leaves alone."""
    pairs = [(content[at], b) for at, b in enumerate(code, offset) if 0 <= at < len(content) and at not in changed]
    same = sum(a == b for a, b in pairs)
    return same, len(pairs) - same
