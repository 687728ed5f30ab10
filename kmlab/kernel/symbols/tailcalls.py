"""Who really called: a function whose last act is a call jumps there (x86-64), and then is in no trace of the kernel's.

The return address in the trace is that of its own caller. What the call there names, and where that function jumps on,
stands in the .ko.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kmlab.kernel.symbols.elf import ObjectFile, Section, Symbol

_CALL = b"\xe8"
_JUMP, _SHORT, _CONDITIONAL = 0xE9, 0xEB, 0x0F
_PC32, _PLT32 = 2, 4
_ABSOLUTE = (1, 10, 11)
_DATA = (".data", ".rodata", ".init.data", ".bss", "__param")
_BACK = "__x86_return_thunk"
"""Where a function of a kernel with mitigations jumps instead of returning."""
_DEEPEST = 4
_X86_64 = 62


class Jump(NamedTuple):
    """The last act of a function that left no frame."""

    function: str
    section: int
    offsets: tuple[int, ...]
    """In its section, of the byte behind the jump; several where each of them may have been the one."""


class Target(NamedTuple):
    """The beginning of a function."""

    name: str
    section: int
    """0 where it is not in this module."""
    offset: int


def lost_frames(elf: ObjectFile, section: int, returns: int, inner: str | None) -> list[Jump]:
    """Return the functions, innermost first, that the call before `returns` went through until it came to `inner`.

    Empty where nothing is missing in the trace, or where it cannot be told.
    """
    if elf.machine != _X86_64:
        return []
    follower = _Follower(elf)
    code = follower.code(section)
    called = code.target(returns - 4) if code and code.content[max(0, returns - 5) : returns - 4] == _CALL else None
    return follower.follow(called, inner) if called and called.section else []


def lost_entry(elf: ObjectFile, entry: str, inner: str) -> list[Jump]:
    """Return the same for a function that the kernel called by its address: init_module or cleanup_module."""
    symbol = next((s for s in elf.symbols if s.name == entry and s.section), None)
    if elf.machine != _X86_64 or symbol is None:
        return []
    return _Follower(elf).follow(Target(entry, symbol.section, symbol.value), inner)


def lost_callback(elf: ObjectFile, inner: str) -> list[Jump]:
    """Return the same for a function whose address the kernel has, if only one of those can have jumped to `inner`."""
    if elf.machine != _X86_64:
        return []
    follower = _Follower(elf, strict=True)
    found = [way for symbol in handed_out(elf) if (way := follower.follow(symbol, inner))]
    return found[0] if len(found) == 1 else []


def handed_out(elf: ObjectFile) -> list[Target]:
    """Return the functions whose address is taken: in data, or by an instruction that is no call."""
    taken: dict[tuple[int, int], str] = {}
    for section in elf.sections:
        if section.executable or section.name.startswith(_DATA):
            for relocation in elf.relocations(section):
                symbol = elf.symbols[relocation.symbol]
                at = (symbol.section, symbol.value + relocation.addend)
                if relocation.type in _ABSOLUTE and at in elf.functions:
                    taken[at] = elf.functions[at][-1].name
    return [Target(name, *at) for at, name in taken.items()]


class _Follower:
    """Follows jumps to a function; what it has found of one it keeps, as many jumps may lead there."""

    def __init__(self, elf: ObjectFile, strict: bool = False) -> None:
        self._elf, self._strict = elf, strict
        self._codes: dict[int, _Code | None] = {}
        self._jumps: dict[tuple[int, int], tuple[Symbol, list[_Way]] | None] = {}
        self._found: dict[tuple[int, int, str | None, int], list[Jump]] = {}

    def code(self, section: int) -> _Code | None:
        """Return the code of a section; None where there is no such section."""
        if section not in self._codes:
            found = self._elf.section(section)
            self._codes[section] = _Code(self._elf, found) if found else None
        return self._codes[section]

    def follow(self, called: Target, inner: str | None, depth: int = _DEEPEST) -> list[Jump]:
        """Return the functions, innermost first, through which `called` came to `inner`."""
        if called.name == inner or not depth:
            return []
        asked = (called.section, called.offset, inner, depth)
        if asked not in self._found:
            self._found[asked] = self._follow(called, inner, depth)
        return self._found[asked]

    def _follow(self, called: Target, inner: str | None, depth: int) -> list[Jump]:
        known = self._jumps_of(called)
        if known is None:
            return []
        symbol, jumps = known
        outside = [j for j in jumps if not j.to.section]
        fitting = [j for j in outside if j.to.name == inner]
        ways = [(j, w) for j in jumps if j.to.section and (w := self.follow(j.to, inner, depth - 1))]
        if not fitting and not ways and not self._strict:
            fitting = outside
        if fitting:
            return [Jump(symbol.name, called.section, tuple(jump.ends for jump in fitting))]
        if len({way[0].function for _, way in ways}) != 1:
            return []
        way = ways[0][1]
        return [*way, Jump(symbol.name, called.section, tuple(jump.ends for jump, _ in ways))]

    def _jumps_of(self, called: Target) -> tuple[Symbol, list[_Way]] | None:
        """Return the function that begins there, and the jumps in it; None where none does."""
        at = (called.section, called.offset)
        if at not in self._jumps:
            symbol, code = self._elf.sized.get(at), self.code(called.section)
            self._jumps[at] = None
            if symbol and code:
                jumps = code.jumps(symbol.value, symbol.value + symbol.size)
                self._jumps[at] = symbol, [j for j in jumps if j.to.name not in (symbol.name, _BACK)]
        return self._jumps[at]


class _Way(NamedTuple):
    to: Target
    ends: int
    """Of the byte behind the jump."""


class _Code:
    """One section, and where what is in it goes."""

    def __init__(self, elf: ObjectFile, section: Section) -> None:
        self._elf, self._section = elf, section
        self.content = elf.content(section)
        self._named = {r.offset: r for r in elf.relocations(section) if r.type in (_PC32, _PLT32)}

    def target(self, at: int) -> Target | None:
        """Where the 32 bits at `at`, the end of a call or jump, lead."""
        relocation = self._named.get(at)
        if relocation is None:
            if at < 0 or len(self.content) < at + 4:
                return None
            (distance,) = struct.unpack_from("<i", self.content, at)
            return self._own(self._section.number, at + 4 + distance)
        symbol = self._elf.symbols[relocation.symbol]
        if not symbol.section:
            return Target(symbol.name, 0, 0)
        return self._own(symbol.section, symbol.value + relocation.addend + 4)

    def jumps(self, first: int, last: int) -> Iterator[_Way]:
        """Return the jumps to the beginning of another function."""
        for at in range(first, min(last, len(self.content)) - 1):
            byte, following = self.content[at], self.content[at + 1]
            if byte == _SHORT:
                to = self._own(self._section.number, at + 2 + (following ^ 0x80) - 0x80)
                ends = at + 2
            elif byte == _JUMP or (byte == _CONDITIONAL and following >> 4 == 8 and at + 2 in self._named):
                distance = at + 1 + (byte == _CONDITIONAL)
                to, ends = self.target(distance), distance + 4
            else:
                continue
            if to is not None:
                yield _Way(to, ends)

    def _own(self, section: int, offset: int) -> Target | None:
        symbols = self._elf.functions.get((section, offset))
        return Target(symbols[0].name, section, offset) if symbols else None
