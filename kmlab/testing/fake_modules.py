"""Provide modules that behave as a test defines, and the smallest valid .ko file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

RELEASE = "6.1.0-0-fake-amd64"
"""The release of every guest's kernel, unless a test sets another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """The effects of one command in the guest."""

    code: int | None = 0
    output: str = ""
    error: str = ""
    """The text on stderr."""
    kernel: tuple[str, ...] = ()
    """Lines that the kernel logs meanwhile: `text`, or `<3>text` with a level."""
    taint: int = 0
    """Bits that the command adds to the kernel's taint."""
    mutes: bool = False
    """Whether the kernel's log stops going to the serial port."""
    serial: str = ""
    """Text that a program writes to the serial port meanwhile."""
    overwrites: bool = False
    """Whether the kernel's ring buffer loses its beginning."""
    ends: str = "returns"
    """returns; hangs: never returns, the connection stays; lost: the guest dies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeModule:
    """How a module behaves in every guest of a World."""

    name: str
    """The name of its folder in the guest, and of its only .ko unless `images` lists others."""
    images: dict[str, bytes] = field(default_factory=dict)
    """The .ko files that a build makes, by path."""
    build: Act = Act()
    load: Act = Act(taint=1 << 12)
    exercise: Act = Act()
    unload: Act = Act()
    exercises: dict[str, Act] = field(default_factory=dict)
    """How its exercises behave that are not as `exercise`, by command."""
    torture: dict[str, Act] = field(default_factory=dict)
    """How it behaves in cases of a torture, by the case's name; well in others."""
    reproduces: Callable[[str], Act] = lambda program: Act()
    """How it behaves when the C program of a fuzzing, which is given, makes its calls again."""
    files: tuple[tuple[bytes, bytes], ...] = ()
    """The files that it leaves for `collect`: path and content."""

    def built(self) -> dict[str, bytes]:
        return self.images or {f"{self.name}.ko": module_image(self.name)}


def module_image(name: str, *, imports: Sequence[str] = (), has_exit: bool = True, **tags: str) -> bytes:
    """Build the smallest valid .ko: an ELF object with .modinfo and a symbol table (elf(5))."""
    fields = {"name": name, "license": "GPL", "vermagic": f"{RELEASE} SMP mod_unload ", **tags}
    info = b"".join(f"{key}={value}".encode() + b"\0" for key, value in fields.items())
    symbols, names = bytes(24), b"\0"
    for symbol, section in [*((n, 0) for n in imports), *([("cleanup_module", 2)] if has_exit else [])]:
        symbols += struct.pack("<IBBHQQ", len(names), 0x10, 0, section, 0, 0)
        names += symbol.encode() + b"\0"
    titles = (b"", b".modinfo", b".gnu.linkonce.this_module", b".symtab", b".strtab", b".shstrtab")
    contents = (b"", info, bytes(64), symbols, names, b"\0".join(titles) + b"\0")
    kinds, body, headers, title = (0, 1, 1, 2, 3, 3), b"", b"", 0
    for number, (kind, content) in enumerate(zip(kinds, contents, strict=True)):
        link, size = (4, 24) if kind == 2 else (0, 0)
        headers += struct.pack("<IIQQQQIIQQ", title, kind, 0, 0, 64 + len(body), len(content), link, 0, 1, size)
        body, title = body + content, title + len(titles[number]) + 1
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return ident + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 6, 5) + body + headers
