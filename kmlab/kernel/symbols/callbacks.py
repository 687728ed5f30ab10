"""Which object of a module an address is in, and which function the kernel was to call for it (elf(5), the psABI).

A timer or a work item that is still queued when its module goes is found by the kernel, not by the module: no frame
names anything of the author's. The object's own relocations say its function, or those of the code that set it up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kmlab.kernel.symbols.elf import EM_X86_64, ObjectFile, Relocation, Section, Symbol

_OBJECT = 1
_PC32, _PLT32 = 2, 4
_NEAR = 2
"""Relocations apart, in the code that puts a function into an object."""


class Variable(NamedTuple):
    """A static object, and the one function that belongs to it."""

    name: str
    callback: Symbol | None
    """None where there are several, or none."""


def variable_at(elf: ObjectFile, section: Section, offset: int) -> Variable | None:
    """Return the object at `offset` in a section of data; None where there is none."""
    found = next(
        (
            symbol
            for symbol in elf.symbols
            if symbol.section == section.number
            and symbol.type == _OBJECT
            and symbol.value <= offset < symbol.value + symbol.size
        ),
        None,
    )
    if found is None:
        return None
    callbacks = set(_initial(elf, section, found))
    for distance in range(1, _NEAR + 1):
        callbacks = callbacks or set(_set_up(elf, found, distance))
    return Variable(found.name, callbacks.pop() if len(callbacks) == 1 else None)


def _initial(elf: ObjectFile, section: Section, known: Symbol) -> Iterator[Symbol]:
    """Return the functions that the object holds from the start."""
    for relocation in elf.relocations(section):
        if known.value <= relocation.offset < known.value + known.size:
            yield from _function(elf, relocation)


def _set_up(elf: ObjectFile, known: Symbol, distance: int) -> Iterator[Symbol]:
    """Return the functions whose address is taken beside the object's, as timer_setup() and INIT_WORK() do it."""
    if elf.machine != EM_X86_64:
        return
    for section in elf.sections:
        if not section.executable:
            continue
        used = sorted((r for r in elf.relocations(section) if r.type != _PLT32), key=lambda r: r.offset)
        for index, relocation in enumerate(used):
            if _within(elf, relocation, known):
                for near in used[max(0, index - distance) : index + distance + 1]:
                    if near.type != _PC32:  # which is a jump
                        yield from _function(elf, near)


def _within(elf: ObjectFile, relocation: Relocation, known: Symbol) -> bool:
    if elf.symbols[relocation.symbol].section != known.section:
        return False
    # Behind a place there may be four bytes of a constant, which count in the distance to it.
    return known.value - 4 <= _target(elf, relocation) < known.value + known.size


def _function(elf: ObjectFile, relocation: Relocation) -> Iterator[Symbol]:
    section, target = elf.symbols[relocation.symbol].section, _target(elf, relocation)
    there = elf.section(section)
    if there is not None and there.executable:
        yield from (s for s in elf.functions.get((section, target), ()) if not s.name.startswith("__pfx_"))


def _target(elf: ObjectFile, relocation: Relocation) -> int:
    """Where it leads, in its symbol's section."""
    behind = 4 if elf.machine == EM_X86_64 and relocation.type in (_PC32, _PLT32) else 0
    return elf.symbols[relocation.symbol].value + relocation.addend + behind
