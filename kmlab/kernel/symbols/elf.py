"""Read the object file that a kernel module is: its sections, symbols and relocations; follows elf(5).

A build or a guest made the file, so that any of its bytes may lie. Whatever is wrong with it is a MalformedModule,
here and in all that reads what a .ko holds: no other error leaves kernel/ over one, and nothing takes longer, or more
memory, than the file's size justifies.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from kmlab.common.errors import ConfigError

EM_X86_64 = 62
EM_AARCH64 = 183
MACHINES = {EM_X86_64: "x86_64", EM_AARCH64: "aarch64"}

SIGNATURE_MAGIC = b"~Module signature appended~\n"
"""The last bytes of a signed module: include/linux/module_signature.h."""

_COMPRESSED = {b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}
_LARGEST = 512 << 20
"""Bytes of a module that is decompressed, and of all its compressed sections together."""
_MOST_SYMBOLS = 1 << 20
"""The whole kernel has a fifth of that."""
_LONGEST_NAME = 4096
"""Bytes; the kernel takes 512 for a symbol (KSYM_NAME_LEN), and a path has as many."""

STT_FUNC = 2
_ET_REL = 1
_PAGE = 4096
_SHT_NULL = 0
_SHT_SYMTAB = 2
_SHT_RELA = 4
_SHT_NOBITS = 8
_SHF_ALLOC = 0x2
_SHF_EXECINSTR = 0x4
_SHF_COMPRESSED = 0x800
_ELFCOMPRESS_ZLIB = 1
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_COMPRESSION_HEADER = struct.Struct("<IIQQ")
_HEADER_SIZE = 64
_ELFCLASS64 = 2
_ELFDATA2LSB = 1

LARGEST_PRODUCTS = 512 << 20
"""Bytes of all that is handed back from one build and lies in kmlab's memory: those of a sparse file count as well."""


class MalformedModule(ConfigError):
    """A file is no kernel module, or its bytes contradict themselves; the message begins with its name."""


class Section(NamedTuple):
    """One section header, with its name looked up."""

    number: int
    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    header_offset: int
    align: int = 1

    @property
    def executable(self) -> bool:
        return bool(self.flags & _SHF_ALLOC and self.flags & _SHF_EXECINSTR)

    @property
    def compressed(self) -> bool:
        return bool(self.flags & _SHF_COMPRESSED)


class Symbol(NamedTuple):
    """One line of the symbol table; `section` is a section's index, or one of the reserved numbers."""

    name: str
    value: int
    size: int
    type: int
    section: int


class Relocation(NamedTuple):
    """One RELA entry: at `offset` goes the address of symbol number `symbol` plus `addend`."""

    offset: int
    symbol: int
    type: int
    addend: int


@dataclass(frozen=True)
class ObjectFile:
    """A relocatable object, the form of every .ko: 64 bits, little-endian, x86-64 or arm64."""

    image: bytes
    name: str
    machine: int
    sections: tuple[Section, ...]

    def find(self, name: str) -> Section | None:
        """Return the first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def content(self, section: Section) -> bytes:
        """Return the bytes of a section, decompressed."""
        if section.type == _SHT_NOBITS:
            return b""
        raw = self.image[section.offset : section.offset + section.size]
        return _decompressed(raw, self.name) if section.compressed else raw

    def code_at(self, part: str, offset: int) -> tuple[Section, int] | None:
        """Return the section and the offset in it of a place in the code that a kernel has loaded.

        `part` is `init`, which the kernel frees after the init function, or `text`. In each the kernel puts the
        sections in the order of the file (kernel/module/main.c, layout_sections).
        """
        begin = 0
        for section in self.sections:
            if section.executable and section.name.startswith(".init") == (part == "init"):
                begin += -begin % max(section.align, 1)
                if begin <= offset < begin + section.size:
                    return section, offset - begin
                begin += section.size
        return None

    def section(self, number: int) -> Section | None:
        """Return the section of that index; None for the reserved numbers, and for none."""
        return self.sections[number] if 0 < number < len(self.sections) else None

    @cached_property
    def functions(self) -> Mapping[tuple[int, int], tuple[Symbol, ...]]:
        """The functions that begin at a place: section and offset; in the order of the symbol table."""
        found: dict[tuple[int, int], list[Symbol]] = {}
        for symbol in self.symbols:
            if symbol.type == STT_FUNC and self.section(symbol.section) is not None:
                found.setdefault((symbol.section, symbol.value), []).append(symbol)
        return {place: tuple(symbols) for place, symbols in found.items()}

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """The whole symbol table in its own order, because relocations count in it."""
        table = next((section for section in self.sections if section.type == _SHT_SYMTAB), None)
        if table is None or table.link >= len(self.sections):
            return ()
        names = self.content(self.sections[table.link])
        raw = self.content(table)
        if len(raw) > _MOST_SYMBOLS * _SYMBOL.size:
            raise MalformedModule(f"{self.name}: claims more than {_MOST_SYMBOLS} symbols", _AGAIN)
        return tuple(
            Symbol(_string(names, name), value, size, info & 0xF, index)
            for name, info, _, index, value, size in _SYMBOL.iter_unpack(raw[: _whole(raw, _SYMBOL)])
        )

    @cached_property
    def sized(self) -> Mapping[tuple[int, int], Symbol]:
        """The first symbol with a size at each place: section and offset."""
        found: dict[tuple[int, int], Symbol] = {}
        for symbol in self.symbols:
            if symbol.size and symbol.section:
                found.setdefault((symbol.section, symbol.value), symbol)
        return found

    def relocations(self, section: Section) -> Iterator[Relocation]:
        """Return the relocations to apply to `section`; each names a symbol that there is."""
        count = len(self.symbols)
        for table in self._relocation_tables.get(section.number, ()):
            raw = self.content(table)
            for offset, info, addend in _RELOCATION.iter_unpack(raw[: _whole(raw, _RELOCATION)]):
                if info >> 32 >= count:
                    raise MalformedModule(f"{self.name}: has a relocation of a symbol that there is not", _AGAIN)
                yield Relocation(offset, info >> 32, info & 0xFFFFFFFF, addend)

    @cached_property
    def _relocation_tables(self) -> Mapping[int, Sequence[Section]]:
        found: dict[int, list[Section]] = {}
        for section in self.sections:
            if section.type == _SHT_RELA:
                found.setdefault(section.info, []).append(section)
        return found


def read_object(image: bytes, name: str) -> ObjectFile:
    """Return the module in `image`; MalformedModule, naming it `name`, for anything that is not one."""
    compression = find_compression(image)
    if compression:
        raise MalformedModule(f"{name}: is compressed ({compression})", "decompress it first: xz -d, zstd -d, gunzip")
    if image[:4] != b"\x7fELF":
        raise MalformedModule(f"{name}: is not a kernel module: it is no ELF file", "give the .ko that make built")
    if len(image) < _HEADER_SIZE:
        raise MalformedModule(f"{name}: is cut short: {len(image)} bytes", "build it again")
    if image[4] != _ELFCLASS64 or image[5] != _ELFDATA2LSB:
        raise MalformedModule(f"{name}: is not made for a 64-bit little-endian machine", _FOREIGN)
    kind, machine = struct.unpack_from("<HH", image, 16)
    if machine not in MACHINES:
        raise MalformedModule(f"{name}: is made for another machine (ELF machine {machine})", _FOREIGN)
    if kind != _ET_REL:
        raise MalformedModule(
            f"{name}: is an ELF file but not a kernel module: it is linked already",
            "give the .ko that make built",
        )
    return ObjectFile(image, name, machine, _read_sections(image, name))


def find_compression(image: bytes) -> str | None:
    """`xz`, `zstd` or `gzip` by the file's first bytes: how distributions ship their modules."""
    return next((kind for magic, kind in _COMPRESSED.items() if image.startswith(magic)), None)


def decompress(image: bytes) -> bytes | None:
    """Return what is in a compressed file; None where Python cannot tell (zstd) or where the file is damaged."""
    try:
        match find_compression(image):
            case "xz":
                return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LARGEST).decompress(image, _LARGEST)
            case "gzip":
                return zlib.decompressobj(wbits=31).decompress(image, _LARGEST)
            case _:
                return None
    except (lzma.LZMAError, zlib.error):
        return None


def without_debug(image: bytes) -> bytes:
    """Return a module less its debug sections, which are most of it; all else stays, also the sections' numbers."""
    if image[:4] != b"\x7fELF" or len(image) < _HEADER_SIZE:
        return image
    try:
        sections = _read_sections(image, "module")
    except MalformedModule:
        return image
    (table,) = struct.unpack_from("<Q", image, 40)
    headers = [list(_SECTION_HEADER.unpack_from(image, table + i * _SECTION_HEADER.size)) for i in range(len(sections))]
    made = bytearray(image[:_HEADER_SIZE])
    for section in sorted(sections, key=lambda s: s.offset):
        header = headers[section.number]
        if section.name.removeprefix(".rela").startswith((".debug_", ".zdebug_")):
            header[4:6] = 0, 0
        elif section.type not in (_SHT_NULL, _SHT_NOBITS):
            made += bytes(-len(made) % min(max(header[8], 1), _PAGE))
            header[4] = len(made)
            made += image[section.offset : section.offset + section.size]
    made += bytes(-len(made) % 8)
    struct.pack_into("<Q", made, 40, len(made))
    for header in headers:
        made += _SECTION_HEADER.pack(*header)
    return bytes(made)


_AGAIN = "build or copy it again"
_FOREIGN = "kmlab's guests are x86_64 or aarch64: build it for one of them"


def _read_sections(image: bytes, name: str) -> tuple[Section, ...]:
    (table,) = struct.unpack_from("<Q", image, 40)
    entry_size, count, names_index = struct.unpack_from("<HHH", image, 58)
    truncated = MalformedModule(f"{name}: is cut short: {len(image)} bytes", _AGAIN)
    if entry_size != _SECTION_HEADER.size or not count or table + count * entry_size > len(image):
        raise truncated
    headers = [_SECTION_HEADER.unpack_from(image, table + i * entry_size) for i in range(count)]
    if names_index >= count:
        raise truncated
    names = image[headers[names_index][4] : headers[names_index][4] + headers[names_index][5]]
    sections = tuple(
        Section(i, _string(names, h[0]), h[1], h[2], h[4], h[5], h[6], h[7], table + i * entry_size, h[8])
        for i, h in enumerate(headers)
    )
    if any(s.type != _SHT_NOBITS and s.offset + s.size > len(image) for s in sections):
        raise truncated
    stored = sum(s.size for s in sections if s.type != _SHT_NOBITS)
    if stored > len(image):
        raise MalformedModule(f"{name}: has sections that lie over one another", _AGAIN)
    if sum(_decompressed_size(image, s) for s in sections if s.compressed) > _LARGEST:
        raise MalformedModule(f"{name}: has compressed sections of more than {_LARGEST >> 20} MiB", _AGAIN)
    return sections


def _decompressed_size(image: bytes, section: Section) -> int:
    if section.type == _SHT_NOBITS or section.size < _COMPRESSION_HEADER.size:
        return 0
    size: int = _COMPRESSION_HEADER.unpack_from(image, section.offset)[2]
    return size


def _decompressed(raw: bytes, name: str) -> bytes:
    """Return the content of a section with SHF_COMPRESSED: zlib behind a header of 24 bytes."""
    try:
        kind, _, size, _ = _COMPRESSION_HEADER.unpack_from(raw)
        if kind == _ELFCOMPRESS_ZLIB:
            # To zlib, a size of 0 is none.
            return zlib.decompressobj().decompress(raw[_COMPRESSION_HEADER.size :], size) if size else b""
    except (struct.error, zlib.error, OverflowError) as error:
        raise MalformedModule(f"{name}: has a broken compressed section: {error}", "build it again") from error
    raise MalformedModule(f"{name}: has debug sections compressed by a way kmlab cannot read", "build with -gz=none")


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset, offset + _LONGEST_NAME)
    return table[offset : end if end >= 0 else offset + _LONGEST_NAME].decode("utf-8", "replace")


def _whole(raw: bytes, record: struct.Struct) -> int:
    """How much of `raw` is whole records."""
    return len(raw) // record.size * record.size
