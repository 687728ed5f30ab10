"""Find source lines in a module's DWARF; follows the DWARF 4 and 5 standards, read with pyelftools.

pyelftools is the one library on PyPI that reads the DWARF of a relocatable object in pure Python. What it
does not do is tell the object's sections apart: all of a .ko's sections lie at address 0, so an address in
.text and one in .init.text look the same. Here the debug sections are first laid out as a linker would, every
executable section at a base of its own, and then read.

Nor does it defend itself: over damaged bytes it raises whatever Python raises, and some make it go round in circles. So
it reads streams that are metered here, and whatever it raises becomes a MalformedModule in one place, `_reading`.
"""

from __future__ import annotations

import inspect
import io
import struct
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import PurePosixPath
from typing import NamedTuple

from elftools.common.exceptions import DWARFError
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo
from elftools.dwarf.lineprogram import LineProgram
from elftools.dwarf.ranges import BaseAddressEntry, RangeEntry

from kmlab.common.events import printable
from kmlab.kernel.symbols.elf import EM_AARCH64, EM_X86_64, MalformedModule, ObjectFile


class SourceFrame(NamedTuple):
    """One function at one address, as DWARF has it."""

    function: str | None
    path: str | None
    """Absolute, or relative to a folder that the compiler was told to forget."""
    line: int | None
    column: int | None
    inlined: bool


class DebugInfo:
    """The DWARF of one module; reads only the units that are asked for, and each of them once."""

    def __init__(self, elf: ObjectFile) -> None:
        self._elf = elf
        self._programs: dict[int, LineProgram | None] = {}
        self._rows: dict[int, list[_Row]] = {}
        self._starts: dict[int, list[int]] = {}
        self._broken: str | None = None
        """What was wrong, once something was: it is not tried again."""

    def frames_at(self, section: int, offset: int) -> list[SourceFrame]:
        """Return the functions that are at `offset` in section number `section`, innermost first.

        Empty if nothing is known. Raises MalformedModule where the DWARF is broken.
        """
        with self._reading():
            return self._frames_at(_base(section) + offset)

    @cached_property
    def folder(self) -> PurePosixPath | None:
        """The folder that the module's own sources have in common, told from its units."""
        with self._reading():
            paths = [path for path in map(_unit_path, self._units()) if path is not None]
        # kbuild's own additions to every module lie elsewhere in some kernels.
        own = [path.parent for path in paths if not path.name.endswith((".mod.c", "module-common.c"))]
        if not own:
            return None
        first = own[0]
        return next((up for up in (first, *first.parents) if all(n.is_relative_to(up) for n in own)), None)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        if self._broken is not None:
            raise MalformedModule(self._broken)
        try:
            yield
        except Exception as error:
            detail = str(error) or type(error).__name__
            self._broken = f"{self._elf.name}: has debug information that cannot be read: {printable(detail, 200)}"
            raise MalformedModule(self._broken) from error

    @cached_property
    def _sections(self) -> dict[str, bytes]:
        return laid_out(self._elf)

    @cached_property
    def _info(self) -> DWARFInfo:
        meter = _Meter(_MOST_READS)
        sections = {
            f"{name[1:]}_sec": DebugSectionDescriptor(_Metered(content, meter), name, None, len(content), 0)
            for name, content in self._sections.items()
        }
        given = {name: sections.get(name) for name in _DESCRIPTORS}
        return DWARFInfo(config=DwarfConfig(True, "x64", 8), **given)

    def _frames_at(self, address: int) -> list[SourceFrame]:
        unit = self._unit_at(address)
        if unit is None:
            return []
        path, line, column = self._line_at(unit, address)
        frames: list[SourceFrame] = []
        for die in _functions_at(unit, address):
            inlined = die.tag == "DW_TAG_inlined_subroutine"
            frames.append(SourceFrame(_function_name(die), path, line, column, inlined))
            if inlined:
                path, line, column = self._call_site(unit, die)
        return frames or [SourceFrame(None, path, line, column, False)]

    def _units(self) -> Iterator[CompileUnit]:
        if self._info.debug_info_sec is not None:
            yield from self._info.iter_CUs()

    def _unit_at(self, address: int) -> CompileUnit | None:
        """By .debug_aranges, which gcc writes; else by each unit's own ranges, which clang leaves it at."""
        table = self._info.get_aranges()
        start = table.cu_offset_at_addr(address) if table is not None and table.entries else None
        if start is not None:
            return self._info.get_CU_at(start)
        return next((unit for unit in self._units() if _covers(unit.get_top_DIE(), address)), None)

    def _line_at(self, unit: CompileUnit, address: int) -> tuple[str | None, int | None, int | None]:
        program = self._program(unit)
        if program is None:
            return None, None, None
        if unit.cu_offset not in self._rows:
            rows = sorted(_rows(program), key=lambda row: row.address)
            self._rows[unit.cu_offset] = rows
            self._starts[unit.cu_offset] = [row.address for row in rows]
        at = bisect_right(self._starts[unit.cu_offset], address) - 1
        row = self._rows[unit.cu_offset][at] if at >= 0 else None
        if row is None or address >= row.end:
            return None, None, None
        return _path_of(unit, program, row.file), row.line or None, row.column or None

    def _program(self, unit: CompileUnit) -> LineProgram | None:
        if unit.cu_offset not in self._programs:
            at = _number(unit.get_top_DIE(), "DW_AT_stmt_list")
            if at is not None and self._info.debug_line_sec is not None:
                _check_tables(self._sections[".debug_line"], at)
            self._programs[unit.cu_offset] = self._info.line_program_for_CU(unit)
        return self._programs[unit.cu_offset]

    def _call_site(self, unit: CompileUnit, die: DIE) -> tuple[str | None, int | None, int | None]:
        program = self._program(unit)
        number = _number(die, "DW_AT_call_file")
        path = _path_of(unit, program, number) if program is not None and number is not None else None
        return path, _number(die, "DW_AT_call_line"), _number(die, "DW_AT_call_column")


def laid_out(elf: ObjectFile) -> dict[str, bytes]:
    """Return the debug sections, the first of each name, relocated as if each executable section had its own base.

    pyelftools could relocate by itself, but to section-relative addresses, and at a tenth of the speed.
    """
    bases = {section.number: _base(section.number) for section in elf.sections if section.executable}
    targets = [bases.get(symbol.section, 0) + symbol.value for symbol in elf.symbols]
    words = _ABSOLUTE[elf.machine]
    found: dict[str, bytes] = {}
    for section in elf.sections:
        if section.name not in _READ or section.name in found:
            continue
        content = bytearray(elf.content(section))
        for offset, symbol, kind, addend in elf.relocations(section):
            word = words.get(kind)
            if word is not None and offset + word.size <= len(content):
                word.pack_into(content, offset, (targets[symbol] + addend) & ((1 << 8 * word.size) - 1))
        found[section.name] = bytes(content)
    return found


_MOST_READS = 6_000_000
"""Reads of one module's DWARF, a few seconds' worth; a crash in a module of 100 kB takes 30,000."""
_LONGEST_NUMBER = 4096
"""Bytes of a number of variable length, each of which costs as much as all before it. Ten hold 64 bits."""
_DEEPEST = 256
"""Functions inlined in one another."""


class _TooMuch(Exception):
    """Nothing that a compiler writes takes so long to read."""

    def __init__(self) -> None:
        super().__init__("it has no end")


class _Meter:
    """How much may still be read."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


class _Metered(io.BytesIO):
    """A section's bytes, which may only be looked at so often."""

    def __init__(self, content: bytes, meter: _Meter) -> None:
        super().__init__(content)
        self._meter = meter
        self._going_on = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = _read(self, size)
        meter = self._meter
        meter.left -= 1 + (len(found) >> 6)
        if meter.left < 0:
            raise _TooMuch
        # A number of variable length goes on while the highest bit is set (LEB128).
        if size == 1 and found >= b"\x80":
            self._going_on += 1
            if self._going_on > _LONGEST_NUMBER:
                raise _TooMuch
        else:
            self._going_on = 0
        return found

    def tell(self) -> int:
        self._meter.left -= 1
        if self._meter.left < 0:
            raise _TooMuch
        return _tell(self)


_read, _tell = io.BytesIO.read, io.BytesIO.tell


def _check_tables(section: bytes, at: int) -> None:
    """Raise DWARFError unless every entry of a DWARF 5 line program's tables of folders and files has bytes of its own.

    pyelftools believes the number of entries, and goes round that often where an entry has no field.
    """
    reader = _Reader(section, at)
    long = reader.number(4) == _LONG
    if long:
        reader.number(8)
    if reader.number(2) < _FIVE:
        return
    offset_size = 8 if long else 4
    reader.at += 2 + offset_size + 5
    opcodes = reader.number(1)
    reader.at += max(0, opcodes - 1)
    for _ in ("folders", "files"):
        forms = [(reader.leb128(), reader.leb128())[1] for _ in range(reader.number(1))]
        count = reader.leb128()
        if count and not any(form in _SIZES or form in _VARIABLE for form in forms):
            raise DWARFError("its line table has entries without a field")
        for _ in range(count):
            for form in forms:
                reader.skip(form, offset_size)


_LONG = 0xFFFFFFFF
_FIVE = 5
_STRING, _BLOCK, _UDATA = 0x08, 0x09, 0x0F
_VARIABLE = frozenset((_STRING, _BLOCK, _UDATA))
_SIZES = {0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16, 0x0E: 0, 0x17: 0, 0x1F: 0, 0x1D: 0}
"""Bytes of each form that such a table may be written in (DWARF 5, table 7.5.6); 0 is an offset's size."""


class _Reader:
    """Goes through bytes; raises DWARFError at their end."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self.at = content, at

    def number(self, size: int) -> int:
        self.at += size
        if not size <= self.at <= len(self._content):
            raise DWARFError("its line table is cut short")
        return int.from_bytes(self._content[self.at - size : self.at], "little")

    def leb128(self) -> int:
        value = shift = 0
        while True:
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise DWARFError("its line table has a number without an end")

    def skip(self, form: int, offset_size: int) -> None:
        """Go behind a value of that form."""
        if form == _STRING:
            end = self._content.find(b"\0", self.at)
            self.at = end + 1 if end >= 0 else len(self._content)
            self.number(0)
        elif form == _UDATA:
            self.leb128()
        elif form == _BLOCK:
            size = self.leb128()
            self.number(size)
        elif form in _SIZES:
            self.number(_SIZES[form] or offset_size)
        else:
            raise DWARFError("its line table has a field of a form that is not known here")


class _Row(NamedTuple):
    """One line of the line table: it holds from `address` up to `end`."""

    address: int
    end: int
    file: int
    line: int
    column: int


# The sections that are read here; locations of variables, call frames and macros are not.
_READ = frozenset(
    f".debug_{name}"
    for name in (
        "info",
        "abbrev",
        "line",
        "line_str",
        "str",
        "str_offsets",
        "addr",
        "aranges",
        "ranges",
        "rnglists",
    )
)

# The relocations that compilers put into debug sections: absolute words of 64 and 32 bits (elf.h).
_ABSOLUTE = {
    EM_X86_64: {1: struct.Struct("<Q"), 10: struct.Struct("<I"), 11: struct.Struct("<I")},
    EM_AARCH64: {257: struct.Struct("<Q"), 258: struct.Struct("<I")},
}

_DESCRIPTORS = tuple(name for name in inspect.signature(DWARFInfo).parameters if name != "config")


def _base(section: int) -> int:
    """Far enough apart for any section; never 0, which DWARF uses for code that the linker dropped."""
    return (section + 1) << 40


def _rows(program: LineProgram) -> Iterator[_Row]:
    before = None
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if before is not None and state.address > before.address:
            yield _Row(before.address, state.address, before.file, before.line, before.column)
        before = None if state.end_sequence else state


def _functions_at(unit: CompileUnit, address: int) -> list[DIE]:
    """Return the subprogram at `address` and all that is inlined there, innermost first."""
    found: list[DIE] = []
    levels = [_children(unit, unit.get_top_DIE())]
    while levels:
        die = next(levels[-1], None)
        if die is None:
            levels.pop()
            continue
        if die.tag not in _SCOPES:
            continue
        transparent = not _has_addresses(die) and die.tag in _TRANSPARENT
        if not transparent and not _covers(die, address):
            continue
        if die.tag in _FUNCTIONS:
            found.append(die)
        if len(levels) > _DEEPEST:
            raise _TooMuch
        # Nothing beside a block that holds the address can hold it too, but a transparent one proves nothing.
        levels = [*(levels if transparent else []), _children(unit, die)]
    return found[::-1]


def _children(unit: CompileUnit, die: DIE) -> Iterator[DIE]:
    """Return the children of a DIE. Unlike pyelftools' own way, this one only ever goes forward, and never recurses."""
    if not die.has_children:
        return
    at, depth = die.offset + die.size, 0
    while True:
        child = unit.get_DIE_from_refaddr(at)
        if depth == 0 and not child.is_null():
            yield child
        at += child.size
        if child.is_null():
            if depth == 0:
                return
            depth -= 1
        elif child.has_children:
            sibling = child.attributes.get("DW_AT_sibling")
            following = unit.cu_offset + int(sibling.value) if sibling and sibling.form in _IN_UNIT else 0
            if following > at:
                at = following
            else:
                depth += 1


_IN_UNIT = frozenset(f"DW_FORM_{form}" for form in ("ref1", "ref2", "ref4", "ref8", "ref_udata"))
"""References that count from their unit's beginning."""
_FUNCTIONS = frozenset(("DW_TAG_subprogram", "DW_TAG_inlined_subroutine"))
_TRANSPARENT = frozenset(("DW_TAG_lexical_block", "DW_TAG_namespace"))
_SCOPES = _FUNCTIONS | _TRANSPARENT


def _has_addresses(die: DIE) -> bool:
    return "DW_AT_low_pc" in die.attributes or "DW_AT_ranges" in die.attributes


def _covers(die: DIE, address: int) -> bool:
    return any(low <= address < high for low, high in _ranges(die))


def _ranges(die: DIE) -> Iterator[tuple[int, int]]:
    if "DW_AT_ranges" in die.attributes:
        yield from _range_list(die)
    elif "DW_AT_low_pc" in die.attributes and "DW_AT_high_pc" in die.attributes:
        low = int(die.attributes["DW_AT_low_pc"].value)
        high = die.attributes["DW_AT_high_pc"]
        yield low, int(high.value) if high.form.startswith("DW_FORM_addr") else low + int(high.value)


def _range_list(die: DIE) -> Iterator[tuple[int, int]]:
    lists, unit = die.dwarfinfo.range_lists(), die.cu
    if lists is None or not isinstance(unit, CompileUnit):
        return
    base_attribute = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
    base = int(base_attribute.value) if base_attribute is not None else 0
    for entry in lists.get_range_list_at_offset(int(die.attributes["DW_AT_ranges"].value), unit):
        if isinstance(entry, BaseAddressEntry):
            base = entry.base_address
        elif isinstance(entry, RangeEntry):
            start = 0 if entry.is_absolute else base
            yield start + entry.begin_offset, start + entry.end_offset


def _function_name(die: DIE) -> str | None:
    """Return a DIE's own name, or that of the abstract function that it is an instance of."""
    for _ in range(8):
        name = die.attributes.get("DW_AT_name")
        if name is not None:
            return _text(name.value)
        origin = next((key for key in ("DW_AT_abstract_origin", "DW_AT_specification") if key in die.attributes), None)
        if origin is None:
            return None
        die = die.get_DIE_from_attribute(origin)
    return None


def _unit_path(unit: CompileUnit) -> PurePosixPath | None:
    attributes = unit.get_top_DIE().attributes
    name = attributes.get("DW_AT_name")
    folder = attributes.get("DW_AT_comp_dir")
    if name is None:
        return None
    return PurePosixPath(_text(folder.value) if folder is not None else "", _text(name.value))


def _path_of(unit: CompileUnit, program: LineProgram, number: int) -> str | None:
    """Return the path of file `number` of a line program: counted from 0 in DWARF 5, from 1 before."""
    header = program.header
    five = header["version"] >= 5
    files, folders = header["file_entry"], header["include_directory"]
    index = number if five else number - 1
    if not 0 <= index < len(files):
        return None
    entry = files[index]
    folder = entry["dir_index"] if five else entry["dir_index"] - 1
    compiled_in = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
    parts = [_text(compiled_in.value)] if compiled_in is not None else []
    if 0 <= folder < len(folders):
        parts.append(_text(folders[folder]))
    return str(PurePosixPath(*parts, _text(entry["name"])))


def _number(die: DIE, name: str) -> int | None:
    attribute = die.attributes.get(name)
    return int(attribute.value) if attribute is not None else None


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
