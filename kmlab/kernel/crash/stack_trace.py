"""Stack frames in the kernel's own words, and which one is to blame (lib/vsprintf.c, scripts/decode_stacktrace.sh).

How architectures differ is data, in stack_formats.py; which functions are passed over is data, in skipped_functions.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from kmlab.kernel.crash.skipped_functions import (
    is_entry,
    is_innocent,
    is_interrupt,
    is_reporter,
    is_yielding,
    reason_to_skip,
)
from kmlab.kernel.crash.stack_formats import ADDRESS, CALLER, FRAME, HERE, WORDS
from kmlab.kernel.symbols.rust_names import demangle


class Frame(NamedTuple):
    """One place in a stack trace."""

    function: str
    """The symbol as printed, with suffixes such as `.constprop.0`; or `0x…` where there was no symbol."""
    offset: int | None
    size: int | None
    """The symbol's size, which tells functions of one name apart."""
    module: str | None
    reliable: bool
    """False for a `? ` frame: an address on the stack that may be left over from an earlier call."""
    exact: bool
    """The address is the instruction itself (RIP, pc), not the one after a call."""
    file: str | None = None
    line: int | None = None
    inlined: bool = False
    own: bool = True
    """file, line, inlined and own, whether the file is the module's and no header of the kernel's, are filled in by
    whoever has the module's debug information, or by a log that somebody has symbolised.
    """

    @property
    def name(self) -> str:
        """The function as its author knows it."""
        return plain_name(self.function)

    @property
    def shown(self) -> str:
        """The symbol for people: as printed, but demangled if it is Rust's."""
        return demangle(self.function)


class Section(NamedTuple):
    """A stack beside the main one: who allocated, who freed, another CPU, an earlier lock."""

    name: str
    """What its task did, in the kernel's words: `allocated`, `freed`, `write`, …"""
    frames: tuple[Frame, ...]
    task: str | None = None
    pid: int | None = None
    cpu: int | None = None
    age: int | None = None
    """Jiffies before the report, if the kernel tells that."""
    time: float | None = None
    """Seconds since boot, if the kernel tells that."""

    def place(self, module: str | None) -> Frame | None:
        """Return the innermost frame that its author wrote: the module's, of any module, then the kernel's."""
        known = [frame for frame in self.frames if frame.reliable and not frame.function.startswith("0x")]
        plain = [frame for frame in known if not is_helper(frame)]
        return next(
            iter(
                [
                    *(frame for frame in plain if module and frame.module == module),
                    *(frame for frame in plain if frame.module),
                    *(frame for frame in known if module and frame.module == module),
                    *plain,
                ]
            ),
            None,
        )


def parse_frames(text: str) -> tuple[Frame, ...]:
    """Return the frames that a whole line shows, innermost first: 32-bit arm names a function and its caller."""
    # Every symbol of a trace is printed with its offset, bar the rare raw address and decoded traces.
    if "+0x" in text:
        if " from " in text:
            found = _FROM.match(text)
            if found:
                return _from(found)
        found = _FRAME.match(text) or (_UNNAMED.match(text) if "@" in text else None)
        if found and found.re is _UNNAMED:
            return (Frame(found[2], None, None, found[3], reliable=True, exact=bool(found[1])),)
        if not found or found["caller"]:
            return ()
        return (_frame(found, exact=bool(found["here"]), reliable=not (found["guess"] or found["unreliable"])),)
    if "0x" in text or "(null)" in text:
        raw = _RAW.match(text)
        if raw:
            return (Frame(raw[1] or "0x0", None, None, None, reliable=True, exact=True),)
    if "(" in text:
        decoded = _DECODED.match(text)
        if decoded and not decoded["caller"]:
            return (_decoded(decoded),)
    if text.endswith(("[inline]", "[inline])")):
        found = _INLINE.match(text) or (_FROM_INLINE.search(text) if " from " in text else None)
        if found:
            return (_inline(found),)
    return ()


def parse_frame(text: str) -> Frame | None:
    """Return the innermost frame that a whole line shows, or None."""
    return next(iter(parse_frames(text)), None)


def find_symbol(text: str) -> Frame | None:
    """Return the first `function+off/size [module]` anywhere in a line, taken as an exact place.

    Also one that was symbolised: `function file.c:3 [inline]`.
    """
    if "+0x" in text:
        found = _SYMBOL.search(text)
        return _frame(found, exact=True, reliable=True) if found else None
    if text.endswith("[inline]"):
        found = _INLINE_LAST.search(text)
        return _inline(found) if found else None
    return None


def plain_name(function: str) -> str:
    """Return a function without what compilers and the kernel's padding add to its name, demangled if it is Rust's."""
    if function.startswith(_DECORATED) or "." in function:
        return _undecorated(function)
    return function


@lru_cache(maxsize=4096)
def _undecorated(function: str) -> str:
    name = function.removeprefix("__pfx_").removeprefix("__cfi_").lstrip(".")
    readable = demangle(name)
    if readable != name:
        return readable
    return _SUFFIX.split(name, maxsplit=1)[0] or function


def blame(
    frames: Sequence[Frame],
    sections: Iterable[Section],
    own: frozenset[str],
    hang: bool = False,
    named: Sequence[Frame] = (),
    suspects: frozenset[str] = frozenset(),
) -> Frame | None:
    """Return the frame of the function that is to blame; None where the trace shows no more than how it was printed.

    `own` are the modules under test, `suspects` those from outside of the kernel's tree: each is blamed before the
    next, and those before the kernel itself. `named` are functions that the report names in its own words, the best
    first: they count where the stack says less.
    """
    others = tuple(sections)
    tiers: list[Callable[[Frame], bool]] = [lambda frame: frame.module in (own or suspects)]
    if not own:
        tiers.append(lambda frame: frame.module is not None)
    for mine in tiers:
        if found := _in_modules(frames, others, named, mine):
            return found
    shown = _interrupted(frames) if hang else frames
    plain = [frame for frame in shown if not frame.function.startswith("0x")]
    likely = [frame for frame in plain if not is_helper(frame)]
    candidates = (
        (frame for frame in likely if frame.reliable),
        (frame for frame in named if not is_helper(frame)),
        # A stack that lost its way has guesses alone.
        *((frame for frame in frames if not frame.reliable and mine(frame)) for mine in tiers),
        (frame for frame in plain if frame.reliable and _may_be_guilty(frame.name)),
        () if any(frame.reliable for frame in plain) else likely,
    )
    return next((frame for several in candidates for frame in several), None)


def _may_be_guilty(name: str) -> bool:
    """Whether a helper's function is worth a name where the stack has nothing better."""
    return not (is_reporter(name) or is_entry(name) or is_yielding(name))


def _in_modules(
    frames: Sequence[Frame], sections: Sequence[Section], named: Sequence[Frame], mine: Callable[[Frame], bool]
) -> Frame | None:
    """Return the innermost frame of these modules, first in the main stack; a function that waits comes last."""
    reliable = [frame for frame in frames if frame.reliable and mine(frame)]
    besides = [frame for section in sections for frame in section.frames if frame.reliable and mine(frame)]
    ordered = [*reliable, *(frame for frame in named if mine(frame)), *besides]
    return next((frame for frame in ordered if not is_helper(frame)), ordered[0] if ordered else None)


def _interrupted(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Return what a stalled CPU was at: its trace begins with the interrupt in which the watchdog looked."""
    last = max((i for i, frame in enumerate(frames) if frame.reliable and is_interrupt(frame.name)), default=None)
    if last is not None and any(frame.reliable and not is_entry(frame.name) for frame in frames[last + 1 :]):
        return frames[last + 1 :]
    start = next((i for i, frame in enumerate(frames) if frame.exact and i), 0)
    return frames[start:]


def is_helper(frame: Frame) -> bool:
    """Whether this is code that reports, copies, locks or waits on behalf of its caller."""
    return not frame.own or reason_to_skip(frame.name, frame.module) is not None


def is_no_bug(frame: Frame) -> bool:
    """Whether a stack with this frame was asked for, or tells of a shortage: it is no bug."""
    return is_innocent(frame.name)


def is_of_registers(text: str) -> bool:
    """Whether the line is what some architecture prints of its registers and the stack's memory."""
    return text.startswith(WORDS) or bool(_HEX_DUMP.match(text))


def shows_bug(frame: Frame) -> bool:
    """Whether a trace with this frame shows more than how the report was printed."""
    return frame.reliable and (frame.module is not None or not is_reporter(frame.name))


# `[module hash]` is a build ID (CONFIG_STACKTRACE_BUILD_ID); arm64 marks where a frame came from, as `(P)`.
_NAME = r"(?P<function>[A-Za-z_.$][\w.$]{0,255})\+0x(?P<offset>[0-9a-f]{1,16})/0x(?P<size>[0-9a-f]{1,16})"
_MODULE = r"(?: \[(?P<module>[\w-]{1,64})[^\]\n]{0,80}\])?"
_DISCRIMINATOR = r"(?: \(discriminator \d{1,9}\))?"
_PLACE = r"(?P<file>[^\s:()\[\]]{1,255}):(?P<line>\d{1,7})"
_FRAME = re.compile(
    rf"\s{{0,16}}(?:(?P<here>{HERE})|(?P<caller>{CALLER})|{FRAME}|(?:{ADDRESS})?)"
    rf"(?P<guess>\? )?{_NAME}{_MODULE}(?: \([A-Z]{{1,4}}\)|(?P<unreliable> \(unreliable\)))?\s{{0,4}}"
    rf"(?:{_PLACE}{_DISCRIMINATOR}(?P<inline> \[inline\])?|\(.{{0,512}}\)|\))?\s{{0,4}}$"
)
_SYMBOL = re.compile(rf"{_NAME}{_MODULE}(?: {_PLACE}(?P<inline> \[inline\])?)?")
_PLAIN = r"[A-Za-z_.$][\w.$]{0,255}"
# `(f [m]) from [<…>] (g+0x1/0x2 [m])`, and since v5.17 without the addresses.
_FROM = re.compile(
    rf"\s{{0,16}}(?:{ADDRESS})?\(?(?P<callee>{_PLAIN})(?:\+0x(?P<at>[0-9a-f]{{1,16}})/0x(?P<of>[0-9a-f]{{1,16}}))?"
    r"(?: \[(?P<its>[\w-]{1,64})[^\]\n]{0,80}\])?\)?"
    rf" from (?:{ADDRESS})?\(?{_NAME}{_MODULE}(?: {_PLACE})?\)?\s{{0,4}}$"
)
_INLINED = rf"(?P<function>[A-Za-z_][\w.]{{0,255}}) {_PLACE}{_DISCRIMINATOR} \[inline\]"
_FROM_INLINE = re.compile(rf" from (?:{ADDRESS})?\({_INLINED}\)$")
_RAW = re.compile(rf"\s{{0,16}}(?:{HERE})(?:(0x[0-9a-f]{{1,16}})|\s{{0,16}}\(null\))\s{{0,4}}$")
# OpenWrt's kernels have no names of functions: `0x82554814 [mt7603e@a7af8836+0x9660]`.
_UNNAMED = re.compile(
    rf"\s{{0,16}}(?:({HERE})|(?:{ADDRESS})?)(0x[0-9a-f]{{8,16}})"
    r" \[([\w-]{1,64})@[0-9a-f]{1,16}\+0x[0-9a-f]{1,16}\]\s{0,4}$"
)
_DECODED = re.compile(
    rf"\s{{0,16}}(?:(?P<here>{HERE})|(?P<caller>{CALLER})|(?:{ADDRESS})?)(?P<guess>\? )?"
    r"(?P<function>[A-Za-z_][\w.]{0,255})"
    r" \((?P<places>[^\s:()\[\]]{1,255}:\d{1,7}[^()]{0,512}(?:\(discriminator \d{1,9}\)[^()]{0,512}){0,16})\)"
    r"(?: \[?(?P<module>[\w-]{1,64})\]?)?(?: \([A-Z]{1,4}\))?\s{0,4}$"
)
_INLINE = re.compile(rf"\s{{0,16}}(?:(?P<here>{HERE})|(?:{ADDRESS})?)(?P<guess>\? )?{_INLINED}$")
_INLINE_LAST = re.compile(rf"(?<!\S){_INLINED}$")
_HEX_DUMP = re.compile(r"[0-9a-f]{4,16}: {1,60}[0-9a-f]{8}")
"""A line of the stack's memory, as 32-bit arm prints it."""
_ONE_PLACE = re.compile(_PLACE)
_SUFFIX = re.compile(r"\.(?:constprop|isra|part|cold|llvm|lto_priv|localalias|clone|\d)")
_DECORATED = ("__pfx_", "__cfi_", "_R", "_ZN")
_HEADERS = re.compile(
    r"(?:\./)?(?:arch/\w{1,20}/)?include/|.{0,255}/include/(?:linux|net|asm|asm-generic|uapi|crypto|drm|media|sound|scsi|rdma|trace)/"
)
"""Where the kernel's headers are: code in them works on behalf of whoever includes it."""


def _frame(found: re.Match[str], exact: bool, reliable: bool) -> Frame:
    offset, size = int(found["offset"], 16), int(found["size"], 16)
    file, line = found["file"], found["line"]
    frame = Frame(found["function"], offset, size, found["module"], reliable, exact)
    return _at(frame, file, line, inlined=bool(found["inline"])) if file else frame


def _from(found: re.Match[str]) -> tuple[Frame, ...]:
    offset, size = int(found["offset"], 16), int(found["size"], 16)
    at, of = found["at"], found["of"]
    callee = Frame(
        found["callee"],
        int(at, 16) if at else None,
        int(of, 16) if of else None,
        found["its"],
        reliable=True,
        exact=False,
    )
    caller = Frame(found["function"], offset, size, found["module"], reliable=True, exact=False)
    return callee, _at(caller, found["file"], found["line"], inlined=False) if found["file"] else caller


def _decoded(found: re.Match[str]) -> Frame:
    """Of several places, inlined ones first, the first that is not in a header of the kernel's."""
    places = [(place["file"], place["line"]) for place in _ONE_PLACE.finditer(found["places"])]
    file, line = next((place for place in places if not _HEADERS.match(place[0])), places[0])
    frame = Frame(found["function"], None, None, found["module"], not found["guess"], bool(found["here"]))
    return _at(frame, file, line, inlined=False)


def _inline(found: re.Match[str]) -> Frame:
    marks = found.groupdict()
    frame = Frame(found["function"], None, None, None, not marks.get("guess"), bool(marks.get("here")))
    return _at(frame, found["file"], found["line"], inlined=True)


def _at(frame: Frame, file: str, line: str, inlined: bool) -> Frame:
    return frame._replace(file=file, line=int(line), inlined=inlined, own=not _HEADERS.match(file))
