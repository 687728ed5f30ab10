"""From `function+offset/size [module]` to file and line; follows kernel/module/kallsyms.c, addr2line(1)."""

from __future__ import annotations

import posixpath
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from kmlab.kernel.symbols.callbacks import variable_at
from kmlab.kernel.symbols.elf import MalformedModule, ObjectFile, Section, read_object
from kmlab.kernel.symbols.elf import Symbol as ElfSymbol
from kmlab.kernel.symbols.tailcalls import Jump, handed_out, lost_callback, lost_entry, lost_frames

if TYPE_CHECKING:
    from kmlab.kernel.symbols.dwarf import DebugInfo, SourceFrame


class Location(NamedTuple):
    """Where in the source a frame is; `file` and `line` are None where it is not known."""

    function: str
    """As the source has it: `read_one` for read_one.constprop.0."""
    file: str | None
    """Relative to the module's folder; of the kernel's headers, `include/linux/list.h`."""
    line: int | None
    column: int | None
    inlined: bool
    """Whether this function was inlined into the one that comes next."""
    own: bool = True
    """Whether the file is the module's; False for the kernel's headers."""


class SymbolAt(NamedTuple):
    """The symbol that an address belongs to."""

    function: str
    offset: int
    size: int | None
    """Up to the next symbol, as the kernel counts; None for the last one of a table."""
    module: str | None = None


class Touched(NamedTuple):
    """An object of a module, and the function that the kernel was to call for it."""

    name: str
    callback: Location | None
    """Where it begins; None where there are several, or none."""


class SourceLine(NamedTuple):
    """One line of an excerpt."""

    number: int
    text: str
    marked: bool


class ModuleSymbols:
    """The symbols and lines of one unstripped .ko; reading is put off until something is asked, and kept.

    `source_root` is the folder that the module was built in, as the builder saw it; None takes it from the
    DWARF.
    """

    def __init__(self, image: bytes, name: str = "module.ko", source_root: PurePosixPath | None = None) -> None:
        self._image = image
        self._name = name
        self._source_root = source_root
        self._located: dict[tuple[int, int], list[Location]] = {}
        self.problem: str | None = None
        """Why it has no lines where it should have some: a sentence that names the file."""

    def locate(self, function: str, offset: int, size: int | None, exact: bool) -> list[Location]:
        """Return the frames at `function+offset/size`, innermost first; empty where the module has no such function.

        `exact` for the program counter itself (RIP, pc), else `offset` is taken for a return address and
        looked up one byte before. Where two functions have the name and the size does not tell them apart,
        file and line are None: no line is better than a wrong one. Raises MalformedModule where the file is no
        module.
        """
        candidates = self._candidates(function, offset, size, exact)
        if not candidates:
            return []
        if len(candidates) > 1:
            return [Location(plain_name(function), None, None, None, False)]
        symbol = candidates[0]
        return self.locate_in(symbol.section, symbol.value + (offset if exact else max(0, offset - 1)), function)

    def locate_in(self, section: int | str, offset: int, function: str = "?") -> list[Location]:
        """Return the frames at `offset` in a section; `function` is what to say where there is no DWARF."""
        index = self._section_index(section)
        if index is None:
            return []
        if (index, offset) not in self._located:
            frames = self._frames_at(index, offset)
            name = plain_name(function)
            self._located[index, offset] = [
                Location(f.function or name, self._relative(f.path), f.line, f.column, f.inlined, self._is_own(f.path))
                for f in frames
            ] or [Location(name, None, None, None, False)]
        return self._located[index, offset]

    def is_blamed(self, error: MalformedModule) -> bool:
        """Whether an error is about this file; then that is its `problem`."""
        if not error.message.startswith(f"{self._name}: "):
            return False
        self.problem = error.message
        return True

    def _frames_at(self, section: int, offset: int) -> list[SourceFrame]:
        """Return what the DWARF has there; nothing if there is none, or if it is broken: then `problem` says so."""
        try:
            return self._debug.frames_at(section, offset) if self.has_lines else []
        except MalformedModule as error:
            self.problem = error.message
            return []

    def lost_frames(self, function: str, offset: int, size: int | None, inner: str | None) -> list[Location]:
        """Who was called from `function+offset/size`, a return address, and jumped on to `inner`; innermost first."""
        candidates = self._candidates(function, offset, size, exact=False)
        if len(candidates) != 1:
            return []
        symbol = candidates[0]
        return self._places(lost_frames(self._elf, symbol.section, symbol.value + offset, inner))

    def lost_entry(self, entry: str, inner: str) -> list[Location]:
        """Return the same if the kernel called `entry`, init_module or cleanup_module, which jumped to `inner`."""
        return self._places(lost_entry(self._elf, entry, inner))

    def lost_callback(self, inner: str) -> list[Location]:
        """Return the same for the only function that the kernel has got the address of and that jumps on to `inner`."""
        return self._places(lost_callback(self._elf, inner))

    def handed_out(self, section: str) -> list[int]:
        """Where in a section the functions begin whose address the kernel may have got."""
        found = self._elf.find(section)
        return [f.offset for f in handed_out(self._elf) if found is not None and f.section == found.number]

    def _places(self, jumps: Iterable[Jump]) -> list[Location]:
        places = []
        for jump in jumps:
            stacks = [self.locate_in(jump.section, offset - 1, jump.function) for offset in jump.offsets]
            # Of several jumps that may have been the one, what they have in common, from the function inwards.
            common = [s[0] for s in zip(*map(reversed, stacks), strict=False) if len(set(s)) == 1]
            places += common[::-1] or [stacks[0][-1]._replace(line=None, column=None)]
        return places

    def knows(self, function: str, size: int) -> bool:
        """Whether it has a function of that name and size; if not, the log is of another build.

        Who jumps into data is in a variable, of which the kernel says no size that could be compared.
        """
        if function not in self._named:
            return any(symbol.name == function and symbol.section for symbol in self._elf.symbols)
        return any(self._fits(symbol, size) for symbol in self._named[function])

    def symbol_at(self, section: str, offset: int) -> SymbolAt | None:
        """Return the function at `offset` in the named section; None outside of it."""
        found = self._elf.find(section)
        if found is None or not 0 <= offset < found.size:
            return None
        symbols = self._in_section.get(found.number, [])
        at = bisect_right(symbols, offset, key=lambda symbol: symbol.value) - 1
        if at < 0:
            return None
        # Several names for one place: the first of them in the symbol table is what the kernel says.
        first = symbols[bisect_left(symbols, symbols[at].value, key=lambda symbol: symbol.value)]
        size = self._size(first)
        return SymbolAt(first.name, offset - first.value, found.size - first.value if size is None else size)

    def symbol_in_code(self, part: str, offset: int) -> SymbolAt | None:
        """Return the function at `offset` in the code that a kernel has loaded; `part` as in ObjectFile.code_at."""
        found = self._elf.code_at(part, offset)
        return self.symbol_at(found[0].name, found[1]) if found else None

    def section_at(self, address: int, sections: Mapping[str, int]) -> tuple[str, int] | None:
        """Return the section and the offset in it of an address in a running kernel.

        `sections` is what /sys/module/NAME/sections/* say: where each section was loaded.
        """
        for name, start in sections.items():
            section = self._elf.find(name)
            if section is not None and section.executable and start <= address < start + section.size:
                return name, address - start
        return None

    def variable_at(self, address: int, sections: Mapping[str, int]) -> Touched | None:
        """Return the static object at an address in a running kernel; `sections` as for section_at."""
        for name, start in sections.items():
            section = self._elf.find(name)
            if section is None or section.executable or not start <= address < start + section.size:
                continue
            found = variable_at(self._elf, section, address - start)
            if found is None:
                return None
            begins = found.callback
            place = self.locate_in(begins.section, begins.value, begins.name) if begins else []
            return Touched(found.name, place[-1] if place else None)
        return None

    @property
    def has_lines(self) -> bool:
        """Whether the file carries DWARF at all."""
        return self._elf.find(".debug_info") is not None

    @cached_property
    def _elf(self) -> ObjectFile:
        return read_object(self._image, self._name)

    @cached_property
    def _debug(self) -> DebugInfo:
        # Imported here because pyelftools takes longer to import than the rest of kmlab, and most runs do
        # not crash.
        from kmlab.kernel.symbols.dwarf import DebugInfo

        return DebugInfo(self._elf)

    @cached_property
    def _root(self) -> PurePosixPath | None:
        try:
            own = self._debug.folder
        except MalformedModule as error:
            self.problem, own = error.message, None
        # A folder that it was not built in, as one of the host's for what a sandbox built, is no help.
        return self._source_root if self._source_root and (not own or own.is_relative_to(self._source_root)) else own

    @cached_property
    def _in_section(self) -> dict[int, list[ElfSymbol]]:
        """The symbols of each executable section by address, without those that the kernel skips."""
        executable = {section.number for section in self._elf.sections if section.executable}
        found: dict[int, list[ElfSymbol]] = {}
        for symbol in self._elf.symbols:
            if symbol.section in executable and symbol.name and not _is_mapping_symbol(symbol.name):
                found.setdefault(symbol.section, []).append(symbol)
        for symbols in found.values():
            symbols.sort(key=lambda symbol: symbol.value)
        return found

    @cached_property
    def _named(self) -> dict[str, list[ElfSymbol]]:
        named: dict[str, list[ElfSymbol]] = {}
        for symbols in self._in_section.values():
            for symbol in symbols:
                named.setdefault(symbol.name, []).append(symbol)
        return named

    def _candidates(self, function: str, offset: int, size: int | None, exact: bool) -> list[ElfSymbol]:
        at = offset if exact else max(0, offset - 1)
        named = [symbol for symbol in self._named.get(function, ()) if at < self._room(symbol)]
        if size is None or len(named) <= 1:
            return named
        fitting = [symbol for symbol in named if self._fits(symbol, size)]
        inner = [symbol for symbol in fitting if self._size(symbol) is not None]
        return inner if len(inner) == 1 else fitting or named

    def _fits(self, symbol: ElfSymbol, size: int) -> bool:
        """Whether the kernel would print `size` for it.

        The kernel counts up to the next symbol (find_kallsyms_symbol()); after the last one of a section
        comes whatever was loaded behind it, so any larger number can be right.
        """
        counted = self._size(symbol)
        return size >= symbol.size if counted is None else size in {counted, symbol.size}

    def _size(self, symbol: ElfSymbol) -> int | None:
        symbols = self._in_section[symbol.section]
        after = bisect_right(symbols, symbol.value, key=lambda other: other.value)
        return symbols[after].value - symbol.value if after < len(symbols) else None

    def _room(self, symbol: ElfSymbol) -> int:
        size = self._size(symbol)
        return self._elf.sections[symbol.section].size - symbol.value if size is None else size

    def _section_index(self, section: int | str) -> int | None:
        if isinstance(section, int):
            return section
        found: Section | None = self._elf.find(section)
        return found.number if found is not None else None

    def _relative(self, path: str | None) -> str | None:
        return None if path is None else relative_path(path, self._root)

    def _is_own(self, path: str | None) -> bool:
        """Keep what is below the module's own folder: a module may have an include/, too."""
        if path is None or _IN_KERNEL_TREE.search(posixpath.normpath(path)) is None:
            return True
        return self._root is not None and PurePosixPath(posixpath.normpath(path)).is_relative_to(self._root)


class Kallsyms:
    """The symbols of a running kernel, from its /proc/kallsyms; empty where the kernel hides them."""

    def __init__(self, text: str) -> None:
        entries = sorted(_parse_kallsyms(text), key=lambda entry: entry[0])
        self._starts = [entry[0] for entry in entries]
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def resolve(self, address: int) -> SymbolAt | None:
        """Return the symbol that `address` belongs to, of the kernel or of a module."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        first = bisect_left(self._starts, self._starts[at])
        start, name, module = self._entries[first]
        size = self._starts[at + 1] - start if at + 1 < len(self._starts) else None
        return SymbolAt(name, address - start, size, module)

    def find(self, name: str) -> list[int]:
        """Return the addresses that have that name."""
        return [start for start, found, _ in self._entries if found == name]


def plain_name(function: str) -> str:
    """Return a function's name in the source: gcc and clang append what they did to it, as in f.isra.0 or f.cold."""
    return _ADDED.sub("", function)


def relative_path(path: str, root: PurePosixPath | None) -> str:
    """`path` as a person of the module would say it: from the module's folder, or from the kernel's."""
    normal = posixpath.normpath(path)
    if root is not None:
        folder = posixpath.normpath(str(root))
        if normal.startswith(folder.rstrip("/") + "/"):
            return normal[len(folder.rstrip("/")) + 1 :]
    header = _IN_KERNEL_TREE.search(normal)
    return normal[header.start("path") :] if header else normal


def excerpt(source_text: str, line: int, around: int = 2) -> list[SourceLine]:
    """Return the lines around line number `line`, that one marked; empty if the source has no such line."""
    lines = source_text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    if not 1 <= line <= len(lines):
        return []
    first, last = max(1, line - around), min(len(lines), line + around)
    return [SourceLine(n, lines[n - 1].rstrip("\r"), n == line) for n in range(first, last + 1)]


_ADDED = re.compile(r"(?:\.(?:constprop|isra|part|cold|lto_priv|llvm|localalias|resolver)(?:\.\d+)?)+$")

# Distributions keep headers in /usr/src/linux-headers-…, kernel-devel in /usr/src/kernels/…, others anywhere.
_IN_KERNEL_TREE = re.compile(r"(?:^|/)(?P<path>(?:arch/[^/]+/include|include|tools/include)/.+)$")


def _is_mapping_symbol(name: str) -> bool:
    """Labels of the assembler that the kernel skips: include/linux/module_symbol.h."""
    return name.startswith((".L", "L0", "$"))


def _parse_kallsyms(text: str) -> Iterable[tuple[int, str, str | None]]:
    for line in text.splitlines():
        parts = line.split()
        if len(parts) < 3 or parts[1] in "aA":
            continue
        try:
            address = int(parts[0], 16)
        except ValueError:
            continue
        if address:
            module = parts[3][1:-1] if len(parts) > 3 and parts[3].startswith("[") else None
            yield address, parts[2], module
