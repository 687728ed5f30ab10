"""What a module file is, from its bytes alone: machine, modinfo, symbols, compression.

Follows the kernel's own checks of a module (kernel/module/main.c, elf_validity_check) and elf(5).
"""

from __future__ import annotations

import lzma
import struct
import zlib
from dataclasses import dataclass, field

from kmlab.errors import ConfigError

MACHINES = {3: "i386", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""ELF machine numbers (elf.h) by the names that `uname -m` gives."""

_COMPRESSION = {b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}
_UNPACK = {"xz": "xz --decompress --keep", "zstd": "zstd --decompress --keep", "gzip": "gunzip --keep"}
_REPACK = {"xz": "xz --check=crc32 --lzma2=dict=1MiB", "zstd": "zstd", "gzip": "gzip"}
"""xz with the options that the kernel's own decompressor can read (Documentation/staging/xz.rst)."""

_LARGEST = 512 * 2**20
_RELOCATABLE = 1
_HEADERS = {1: ("HHIIIIIHHHHHH", "IIIIIIIIII"), 2: ("HHIQQQIHHHHHH", "IIQQQQIIQQ")}
"""By ELF class: what follows e_ident, and a section header."""
_IDENT = 16
_NOBITS = 8


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """A kernel module as its file tells it."""

    machine: str
    modinfo: dict[str, str] = field(repr=False)
    """The fields that occur once or whose last value is good enough: name, license, vermagic."""
    has_debug_info: bool
    """False: built without debug information, or stripped of it."""
    has_symbols: bool
    """False: stripped of everything; no kernel loads it."""
    has_versions: bool
    """It records a checksum of each kernel symbol it uses (CONFIG_MODVERSIONS)."""

    @property
    def vermagic(self) -> str:
        return self.modinfo.get("vermagic", "")

    @property
    def release(self) -> str:
        """The kernel release it was built for, as `uname -r` there."""
        return self.vermagic.split(" ", 1)[0]


def compression(content: bytes) -> str | None:
    """xz, zstd or gzip if `content` is compressed by one of these."""
    return next((name for magic, name in _COMPRESSION.items() if content.startswith(magic)), None)


def decompress(content: bytes) -> bytes | None:
    """What is in a compressed file; None where Python cannot tell (zstd) or where the file is damaged."""
    try:
        match compression(content):
            case "xz":
                return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LARGEST).decompress(content, _LARGEST)
            case "gzip":
                return zlib.decompressobj(wbits=31).decompress(content, _LARGEST)
            case _:
                return None
    except (lzma.LZMAError, zlib.error):
        return None


def parse_module(content: bytes, name: str = "the file") -> ModuleFile:
    """Read a module file's facts; ConfigError, naming the file, if it is none."""
    how = compression(content)
    if how:
        raise ConfigError(
            f"{name}: compressed with {how}; a module is signed first and compressed after",
            f"{_UNPACK[how]} FILE, sign the .ko, then {_REPACK[how]} it again",
        )
    try:
        machine, sections = _sections(content)
    except (struct.error, _NotElf) as error:
        raise ConfigError(
            f"{name}: not a kernel module ({error})", "name the .ko that kbuild linked, whole and unchanged"
        ) from None
    if ".modinfo" not in sections:
        raise ConfigError(
            f"{name}: an object file but not a kernel module: it has no .modinfo section",
            "name the .ko, not one of the .o files that it is linked from",
        )
    return ModuleFile(
        machine=MACHINES.get(machine, f"ELF machine {machine}"),
        modinfo=_modinfo(sections[".modinfo"]),
        has_debug_info=any(section.startswith((".debug_info", ".zdebug_info")) for section in sections),
        has_symbols=".symtab" in sections,
        has_versions="__versions" in sections or "__version_ext_crcs" in sections,
    )


class _NotElf(Exception):
    """Says why in words that fit in brackets."""


def _sections(content: bytes) -> tuple[int, dict[str, bytes]]:
    """The ELF machine number, and each section's contents by name."""
    if not content.startswith(b"\x7fELF"):
        raise _NotElf("an empty file" if not content else "no ELF file")
    order = {1: "<", 2: ">"}.get(content[5]) if len(content) > _IDENT else None
    formats = _HEADERS.get(content[4]) if order else None
    if order is None or formats is None:
        raise _NotElf("a damaged ELF header")
    header = struct.unpack_from(order + formats[0], content, _IDENT)
    kind, machine, table, size, count, names_at = header[0], header[1], header[5], *header[10:13]
    if kind != _RELOCATABLE:
        raise _NotElf("an ELF program or shared library")
    one = struct.Struct(order + formats[1])
    if size != one.size or not count or names_at >= count or table + size * count > len(content):
        raise _NotElf("an ELF file that is cut short or damaged")
    headers = [one.unpack_from(content, table + size * number) for number in range(count)]
    for entry in headers:
        if entry[1] != _NOBITS and entry[4] + entry[5] > len(content):
            raise _NotElf("an ELF file that is cut short")
    names = _contents(content, headers[names_at])
    return machine, {_text(names, entry[0]): _contents(content, entry) for entry in headers}


def _contents(content: bytes, header: tuple[int, ...]) -> bytes:
    return b"" if header[1] == _NOBITS else content[header[4] : header[4] + header[5]]


def _text(names: bytes, at: int) -> str:
    return names[at:].split(b"\0", 1)[0].decode("utf-8", "replace")


def _modinfo(section: bytes) -> dict[str, str]:
    fields = (entry.decode("utf-8", "replace").partition("=") for entry in section.split(b"\0") if entry)
    return {key: value for key, _, value in fields}
