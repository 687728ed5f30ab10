"""A crash over what a module had left in the kernel's hands when it was unloaded: whose it was.

No frame names a module that is gone (kernel/module/kallsyms.c). Where its sections had been is known from the time
that it was loaded (/sys/module/NAME/sections), and that tells which function was run, or which object was touched.
Of one that was never quite loaded, or of which there is no more than a log, the place on its page may do.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from kmlab.kernel.crash.crash import Crash, fingerprint_of
from kmlab.kernel.crash.stack_trace import Frame
from kmlab.kernel.symbols.registers import PAGE
from kmlab.kernel.symbols.symbolizer import ModuleSymbols

Sections = Mapping[str, Mapping[str, int]]
"""Of each module that was loaded, where each of its sections was."""


def left_behind(crash: Crash, symbols: Mapping[str, ModuleSymbols], places: Sections) -> Crash:
    """Return the same finding with the function that a module left behind, if it is one of those."""
    if any(frame.reliable and frame.module for frame in crash.frames):
        return crash
    # Who allocated an object is asked later, when no name of a module's init is left, or none of the module.
    objects = bool(crash.traits & {"leak", "slab"})
    gone = {name: places.get(name) or _by_page(crash, known) for name, known in symbols.items()}
    gone = {name: found for name, found in gone.items() if found and (objects or _is_gone(crash, name))}
    if not gone:
        return crash
    frames = tuple(_named(frame, symbols, gone) for frame in crash.frames)
    ran = _first(frames)
    if objects:
        sections = tuple(
            beside._replace(frames=tuple(_named(frame, symbols, gone) for frame in beside.frames))
            for beside in crash.sections
        )
        by = ran or next(filter(None, (_first(beside.frames) for beside in sections)), None)
        named_crash = dataclasses.replace(crash, frames=frames, sections=sections)
        return _told(named_crash, by.module, by.name, by.file, by.line, f"in {by.name}") if by and by.module else crash
    hint = _HINT.search(crash.text)
    if ran is None and hint:
        # DEBUG_OBJECTS names the function of the timer or work item that was freed while it was pending.
        named = _named(Frame(hint[1], 0, None, None, reliable=True, exact=True), symbols, gone)
        if named.module:
            where = f"after {named.module} was unloaded, in {named.name}"
            return _told(crash, named.module, named.name, named.file, named.line, where)
    if ran and ran.module:
        found = dataclasses.replace(crash, frames=frames)
        return _told(found, ran.module, ran.name, ran.file, ran.line, f"after {ran.module} was unloaded, in {ran.name}")
    address = _FAULT.search(crash.text)
    for name, found_at in gone.items() if address else ():
        touched = symbols[name].variable_at(int(address[1], 16), found_at) if address else None
        if touched:
            who = f"over {touched.name} after {name} was unloaded"
            place = touched.callback
            if place is None:
                return _told(crash, name, None, None, None, who)
            return _told(crash, name, place.function, place.file, place.line, f"{who}, in {place.function}")
    return crash


_FAULT = re.compile(r"for address: (?:0x)?([0-9a-f]{16})")
_HINT = re.compile(r"ODEBUG: .{0,200}hint: (0x[0-9a-f]{9,16})")
_LINKED = re.compile(r"Modules linked in:([^\[\n]*)")
_IN_MODULES = re.compile(r"0xf{8}[a-e][0-9a-f]{7}")
"""Where modules lie on x86-64 (Documentation/arch/x86/x86_64/mm.rst)."""
_RAW = re.compile(r"0x[0-9a-f]{9,16}")
_WHERE = re.compile(r" in (?:unloaded module )?[\w.]+$")


def _first(frames: Iterable[Frame]) -> Frame | None:
    """Return the innermost frame of a module."""
    return next((frame for frame in frames if frame.reliable and frame.module), None)


def _is_gone(crash: Crash, name: str) -> bool:
    linked = _LINKED.search(crash.text)
    return bool(linked) and not re.search(rf" {re.escape(name)}(?:\(|\s|$)", linked[1] if linked else "")


def _by_page(crash: Crash, known: ModuleSymbols) -> Mapping[str, int]:
    """Where its text was if a function of it was called, as text begins on a page (layout_sections())."""
    first = next((frame for frame in crash.frames if frame.exact), None)
    if first is None or not _IN_MODULES.fullmatch(first.function):
        return {}
    address = int(first.function, 16)
    fitting = [offset for offset in known.handed_out(".text") if (address - offset) % PAGE == 0]
    return {".text": address - fitting[0]} if len(fitting) == 1 else {}


def _named(frame: Frame, symbols: Mapping[str, ModuleSymbols], gone: Sections) -> Frame:
    if not _RAW.fullmatch(frame.function):
        return frame
    for name, places in gone.items():
        known = symbols[name]
        found = known.section_at(int(frame.function, 16), places)
        symbol = known.symbol_at(*found) if found else None
        if found and symbol:
            # It was called there, or it returned there out of a sleep: then the call before is its line.
            exact = frame.exact and symbol.offset == 0
            stack = known.locate_in(found[0], found[1] if exact else max(0, found[1] - 1), symbol.function)
            own = next((place for place in stack if place.file and place.own), None)
            return frame._replace(
                function=own.function if own else symbol.function,
                offset=symbol.offset,
                size=symbol.size,
                module=name,
                exact=exact,
                file=own.file if own else None,
                line=own.line if own else None,
            )
    return frame


def _told(crash: Crash, module: str, function: str | None, file: str | None, line: int | None, where: str) -> Crash:
    return dataclasses.replace(
        crash,
        title=f"{_WHERE.sub('', crash.title)} {where}",
        module=module,
        function=function,
        file=file,
        line=line,
        fingerprint=fingerprint_of("left behind", module, function or where),
    )
