"""Find source lines in a module's DWARF; follows the DWARF 4 and 5 standards, read with pyelftools.

pyelftools is the one library on PyPI that reads the DWARF of a relocatable object in pure Python. What it
does not do is tell the object's sections apart: all of a .ko's sections lie at address 0, so an address in
.text and one in .init.text look the same. Here the object is first laid out as a linker would, every
executable section at a base of its own, and then read.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import PurePosixPath
from typing import NamedTuple

from elftools.common.exceptions import DWARFError, ELFError
from elftools.construct.core import ConstructError
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DWARFInfo
from elftools.dwarf.lineprogram import LineProgram
from elftools.dwarf.ranges import BaseAddressEntry, RangeEntry
from elftools.elf.elffile import ELFFile

from kmlab.errors import ConfigError
from kmlab.kernel.elf import EM_AARCH64, EM_X86_64, ObjectFile, Section


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
        self._rows: dict[int, list[_Row]] = {}
        self._starts: dict[int, list[int]] = {}

    def frames_at(self, section: int, offset: int) -> list[SourceFrame]:
        """The functions that are at `offset` in section number `section`, innermost first; empty if nothing
        is known.

        Raises ConfigError where the DWARF is broken.
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
        try:
            yield
        except _BROKEN as error:
            detail = str(error) or type(error).__name__
            raise ConfigError(f"{self._elf.name}: has debug information that cannot be read: {detail}") from error

    @cached_property
    def _info(self) -> DWARFInfo:
        laid_out = ELFFile(io.BytesIO(lay_out(self._elf)))
        return laid_out.get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)

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
        program = self._info.line_program_for_CU(unit)
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

    def _call_site(self, unit: CompileUnit, die: DIE) -> tuple[str | None, int | None, int | None]:
        program = self._info.line_program_for_CU(unit)
        number = _number(die, "DW_AT_call_file")
        path = _path_of(unit, program, number) if program is not None and number is not None else None
        return path, _number(die, "DW_AT_call_line"), _number(die, "DW_AT_call_column")


def lay_out(elf: ObjectFile) -> bytes:
    """The object with its debug sections relocated as if each executable section lay at a base of its own.

    pyelftools could relocate by itself, but to section-relative addresses, and at a tenth of the speed.
    """
    image = bytearray(elf.image)
    bases = {section.number: _base(section.number) for section in elf.sections if section.executable}
    targets = [bases.get(symbol.section, 0) + symbol.value for symbol in elf.symbols]
    words = _ABSOLUTE[elf.machine]
    for section in elf.sections:
        if section.name not in _READ:
            continue
        where = section.offset
        if section.compressed:
            where = _append_decompressed(image, elf, section)
            limit = len(image) - where
        else:
            limit = section.size
        for offset, symbol, kind, addend in elf.relocations(section):
            word = words.get(kind)
            if word is not None and symbol < len(targets) and offset + word.size <= limit:
                word.pack_into(image, where + offset, (targets[symbol] + addend) & ((1 << 8 * word.size) - 1))
    return bytes(image)


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

_BROKEN = (
    ELFError,
    DWARFError,
    ConstructError,
    struct.error,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    TypeError,
    UnicodeDecodeError,
    ValueError,
)
"""All that pyelftools has been seen to raise over damaged bytes."""


def _base(section: int) -> int:
    """Far enough apart for any section; never 0, which DWARF uses for code that the linker dropped."""
    return (section + 1) << 40


def _append_decompressed(image: bytearray, elf: ObjectFile, section: Section) -> int:
    """Put the section's content at the end of the image, point its header there, and say where that is."""
    content = elf.content(section)
    where = len(image)
    image += content
    struct.pack_into("<Q", image, section.header_offset + 8, section.flags & ~0x800)
    struct.pack_into("<QQ", image, section.header_offset + 24, where, len(content))
    return where


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
    """The subprogram at `address` and all that is inlined there, innermost first."""
    found: list[DIE] = []
    children = list(unit.get_top_DIE().iter_children())
    while children:
        die = children.pop(0)
        if die.tag not in _SCOPES:
            continue
        transparent = not _has_addresses(die) and die.tag in _TRANSPARENT
        if not transparent and not _covers(die, address):
            continue
        if die.tag in _FUNCTIONS:
            found.insert(0, die)
        # Nothing beside a block that holds the address can hold it too, but a transparent one proves nothing.
        children = [*die.iter_children(), *(children if transparent else [])]
    return found


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
    """A DIE's own name, or that of the abstract function that it is an instance of."""
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
    """The path of file `number` of a line program: counted from 0 in DWARF 5, from 1 before."""
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
