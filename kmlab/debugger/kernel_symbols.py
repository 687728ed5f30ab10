"""Make a file of the kernel's symbols for gdb, of the checkpoint's /proc/kallsyms.

The file has one section, .text, that takes no space, with each function at its offset in it; data are absolute symbols.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from kmlab.common.errors import CommandFailed
from kmlab.common.events import Deadline
from kmlab.host.process import command

_LINE = re.compile(r"([0-9a-f]{16}) ([A-Za-z]) ([A-Za-z_.$][\w.$]{0,200})$", re.ASCII | re.MULTILINE)
"""A symbol of the kernel itself: those of modules have `[module]` behind them."""
_CODE, _DATA = "tTwW", "dDbBrRvV"
_PATIENCE = 60.0


class KernelSymbols(NamedTuple):
    """The kernel's symbols."""

    start: int
    """The address of the kernel's code (_text)."""
    code: dict[str, int]
    data: dict[str, int]


def parse_symbols(kallsyms: str) -> KernelSymbols | None:
    """Return the kernel's symbols; None if the table has no addresses. Of several functions of a name, the first."""
    code: dict[str, int] = {}
    data: dict[str, int] = {}
    for address, kind, name in _LINE.findall(kallsyms):
        home = code if kind in _CODE else data if kind in _DATA else None
        if home is not None:
            home.setdefault(name, int(address, 16))
    start = code.get("_text") or code.get("_stext") or 0
    if not start:
        return None
    inside = {name: at for name, at in code.items() if at >= start}
    return KernelSymbols(start, inside, {name: at for name, at in data.items() if at >= start and name not in inside})


def assembler_source(symbols: KernelSymbols) -> str:
    """Return the assembler source of the file; as(1)."""
    size = max(symbols.code.values()) - symbols.start + 1
    lines = ['.section .text,"ax",@nobits', "1:", f".skip {size}"]
    for name, at in symbols.code.items():
        lines += [f'.globl "{name}"', f'.type "{name}",@function', f'.set "{name}", 1b + {at - symbols.start}']
    lines += [f'.globl "{name}"\n.set "{name}", {at}' for name, at in symbols.data.items()]
    return "\n".join(lines) + "\n"


def write_symbols(symbols: KernelSymbols, folder: Path) -> Path | None:
    """Write the file into a folder; None if this host has no assembler."""
    source, target = folder / "kernel.s", folder / "kernel.o"
    source.write_text(assembler_source(symbols), encoding="ascii")
    try:
        command.run(["as", "-o", target, source], deadline=Deadline(_PATIENCE))
    except CommandFailed:
        return None
    finally:
        source.unlink()
    return target
