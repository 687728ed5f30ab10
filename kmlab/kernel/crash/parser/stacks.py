"""The stacks of one report: where it was, who allocated, who freed, what other CPUs and tasks were at."""

from __future__ import annotations

import re
from typing import NamedTuple

from kmlab.kernel.crash.stack_trace import Frame, Section, find_symbol, is_helper, parse_frames
from kmlab.kernel.crash.stack_trace import shows_bug as frame_shows_bug

MAX_FRAMES = 64
MAX_SECTIONS = 16
MAIN = ""
CHAIN = "chain"
_VICTIM = "rcu kthread"


class Stacks:
    """The stacks of a report that is being read."""

    def __init__(self, key: str, first: str) -> None:
        self.frames: list[Frame] = []
        """The main one."""
        self._sections: dict[str, list[Frame]] = {}
        self._at = {key: first}
        """The stack that each task or CPU that talks is at."""

    def main(self, key: str) -> None:
        """Go back to the main stack."""
        self._at[key] = MAIN

    def is_main(self, key: str) -> bool:
        """Whether the next frame belongs to the main stack."""
        return self._at.setdefault(key, MAIN) == MAIN

    @property
    def shows_bug(self) -> bool:
        """Whether the main one shows more than how the report was printed."""
        known = [frame for frame in self.frames if frame.reliable] or [f._replace(reliable=True) for f in self.frames]
        return any(map(frame_shows_bug, known))

    def put(self, frame: Frame, key: str) -> None:
        """Take a frame into the stack that is being told."""
        frames = self._told(key)
        last = frames[-1] if frames else None
        if frames is None or (last and _is_again(last, frame)):
            return
        if last and last.inlined and frame.module and not frame.inlined:
            _own_inlined(frames, frame.module)
        if len(frames) < MAX_FRAMES:
            frames.append(frame)

    def turn(self, text: str, key: str) -> Turn | None:
        """Begin another stack if the line does; else return None."""
        found = _SECTION.match(text)
        if found is None:
            return None
        name = found[0].strip(": ").lower()
        if name in ("call trace", "stack backtrace", "backtrace"):
            return self._resume(name, key)
        if text.startswith("task:rcu_"):
            # RCU's own thread is what a stall keeps waiting, not what stalls.
            self._at[key] = _VICTIM
            return Turn()
        if found["other"]:
            return self._turn_to_other(name, text, found["cpu"], key)
        self._at[key] = name.removesuffix(" in").removesuffix(" by task")
        return Turn(first=_tracked(text) if found[0].endswith(" in ") else None)

    def told(self, earlier: bool) -> tuple[tuple[Frame, ...], tuple[Section, ...]]:
        """Return the main stack and the others. `earlier`: the place to mend is where the lock was taken first."""
        sections = {name: tuple(found) for name, found in self._sections.items() if found}
        frames = tuple(self.frames)
        first = next((name for name in sections if name.endswith("state was registered at")), None)
        if earlier and first and any(not is_helper(frame) for frame in sections[first]):
            # The lock is right to be taken in the interrupt: what is wrong is the place that left interrupts on.
            found = sections.pop(first)
            return found, (*(Section(*item) for item in sections.items()), Section("stack backtrace", frames))
        return frames, tuple(Section(*item) for item in sections.items())

    def _told(self, key: str) -> list[Frame] | None:
        """Return the stack that is being told, or None where there are too many."""
        if self.is_main(key):
            return self.frames
        at = self._at[key]
        if at in self._sections or len(self._sections) < MAX_SECTIONS:
            return self._sections.setdefault(at, [])
        return None

    def _resume(self, name: str, key: str) -> Turn:
        """Begin a stack that has no name of its own."""
        if self._at.get(key) == _VICTIM:
            return Turn()
        # Only the first names the culprit; but slub and lockdep print theirs behind others.
        if not self.frames or (len(self.frames) == 1 and self.frames[0].exact):
            self._at[key] = MAIN
        elif name != "call trace":
            self._at[key] = name
        return Turn()

    def _turn_to_other(self, name: str, text: str, cpu: str | None, key: str) -> Turn:
        """Begin the stack of a CPU or a task. The first of several that has one is what the report is about."""
        self._at[key] = f"cpu {cpu}" if cpu else name
        if self.frames or "skipped" in text:
            return Turn()
        self._at[key] = MAIN
        return Turn(cpu=int(cpu) if cpu else None)


class Turn(NamedTuple):
    """A line that begins another stack, and what it says."""

    cpu: int | None = None
    """The CPU that the report is about."""
    first: Frame | None = None
    """The stack's first frame."""


def find_frames(text: str, with_addresses: bool) -> tuple[Frame, ...]:
    """Return the frames that a line shows. `with_addresses`: a line with an address alone is one, too."""
    frames = parse_frames(text)
    raw = _ADDRESS.match(text) if with_addresses and not frames else None
    return (_at_address(raw[1]),) if raw else frames


def _tracked(text: str) -> Frame | None:
    """Return the place that slub's line names in which an object was allocated or freed."""
    first, raw = find_symbol(text), _TRACKED.match(text)
    return first._replace(exact=False) if first else _at_address(raw[1]) if raw else None


def _at_address(address: str) -> Frame:
    return Frame(address, None, None, None, reliable=True, exact=False)


def _is_again(last: Frame, frame: Frame) -> bool:
    """Whether a frame is only the last one again.

    arm64 since 6.13 begins the trace with the pc once more; 32-bit arm names each function twice.
    """
    return (last.exact and last[:2] == frame[:2]) or (
        frame.offset is None and not frame.file and last.name == frame.name
    )


def _own_inlined(frames: list[Frame], module: str) -> None:
    """Give the module the functions that were inlined in its own."""
    for at in range(len(frames) - 1, -1, -1):
        if not frames[at].inlined or frames[at].module:
            return
        frames[at] = frames[at]._replace(module=module)


_SECTION = re.compile(
    r"\s{0,8}(?:Call [Tt]race|stack backtrace|[Bb]acktrace|(?:Last"
    r"|Second to last) potentially related work creation"
    r"|(?:Allocated|Freed|allocated|freed) by task|(?:Allocated|Freed) in (?=\S)"
    r"|Uninit was (?:stored to memory|created) at|page last (?:allocated|free)"
    r"|the existing dependency chain|Preemption disabled at|\{[\w -]{1,40}\} state was registered at"
    r"|kfence-#\d{1,9}(?=:)|(?P<other>NMI backtrace for cpu (?P<cpu>\d{1,5})|task:\S{1,64}"
    r"|(?:read|write|read-write|assert no writes)(?: \(\w+\))? to 0x[0-9a-f]{1,16} of \d{1,9} bytes)"
    r"|RCU grace-period kthread stack dump|rcu: RCU grace-period kthread stack dump|Last Breaking-Event-Address)"
)
_ADDRESS = re.compile(r"\s{1,16}(?:\[<[0-9a-f]{8,16}>\] )?(0x[0-9a-f]{9,16})\s{0,4}$")
"""A frame of kmemleak's or slub's in a module that is gone."""
_TRACKED = re.compile(r"\s{0,8}(?:Allocated|Freed) in (0x[0-9a-f]{9,16})\s")
