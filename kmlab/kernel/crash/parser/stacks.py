"""The stacks of one report: where it was, who allocated, who freed, what other CPUs and tasks were at."""

from __future__ import annotations

import re
from typing import NamedTuple

from kmlab.kernel.crash.parser.stack_beginnings import NAMELESS, Beginning, at_address, find_beginning
from kmlab.kernel.crash.stack_trace import Frame, Section, is_helper, parse_frames
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
        self._sections: dict[str, _Beside] = {}
        self._at = {key: first}
        """The stack that each task or CPU that talks is at."""
        self._first: Beginning | None = None
        """How the main one begins, if a line says that."""

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
        begin = find_beginning(text)
        if begin is None:
            return None
        if begin.name in NAMELESS:
            return self._resume(begin.name, key)
        if text.startswith("task:rcu_") or begin.name.endswith("kthread stack dump"):
            # RCU's own thread is what a stall keeps waiting, not what stalls.
            self._at[key] = _VICTIM
            return Turn()
        if begin.rivals:
            return self._turn_to_other(begin, text, key)
        self._enter(begin, key)
        return Turn(first=begin.first)

    def told(self, earlier: bool) -> tuple[tuple[Frame, ...], tuple[Section, ...]]:
        """Return the main stack and the others. `earlier`: the place to mend is where the lock was taken first."""
        sections = [beside.section() for beside in self._sections.values() if beside.frames]
        frames = tuple(self.frames)
        first = next((section for section in sections if section.name.endswith("state was registered at")), None)
        if earlier and first and any(not is_helper(frame) for frame in first.frames):
            # The lock is right to be taken in the interrupt: what is wrong is the place that left interrupts on.
            sections.remove(first)
            return first.frames, (*sections, Section("stack backtrace", frames))
        if self._first and frames and sections:
            # Of two that race, what each of them did is worth a word.
            sections.insert(0, self._first.section(frames))
        return frames, tuple(sections)

    def _enter(self, begin: Beginning, key: str) -> None:
        """Begin the stack; another one of that name gets a number."""
        name, number = begin.name, 2
        while name in self._sections and self._sections[name].frames:
            name, number = f"{begin.name} ({number})", number + 1
        if len(self._sections) < MAX_SECTIONS:
            self._sections[name] = _Beside(begin._replace(name=name))
        self._at[key] = name

    def _told(self, key: str) -> list[Frame] | None:
        """Return the stack that is being told, or None where there are too many."""
        if self.is_main(key):
            return self.frames
        at = self._at[key]
        if at not in self._sections and len(self._sections) < MAX_SECTIONS:
            self._sections[at] = _Beside(Beginning(at))
        return self._sections[at].frames if at in self._sections else None

    def _resume(self, name: str, key: str) -> Turn:
        """Begin a stack that has no name of its own."""
        if self._at.get(key) == _VICTIM:
            return Turn()
        # Only the first names the culprit; but slub and lockdep print theirs behind others.
        if not self.frames or (len(self.frames) == 1 and self.frames[0].exact):
            self._at[key] = MAIN
        elif name != "call trace":
            # A second one of kmemleak's is of the object that it found.
            self._at[key] = "allocated" if name == "backtrace" else name
        return Turn()

    def _turn_to_other(self, begin: Beginning, text: str, key: str) -> Turn:
        """Begin the stack of one of several CPUs or tasks. The first that has one is what the report is about."""
        if self.frames or "skipped" in text:
            self._enter(begin, key)
            return Turn()
        self._at[key] = MAIN
        if begin.races:
            self._first = begin
            return Turn()
        return Turn(cpu=begin.cpu)


class Turn(NamedTuple):
    """A line that begins another stack, and what it says."""

    cpu: int | None = None
    """The CPU that the report is about."""
    first: Frame | None = None
    """The stack's first frame."""


class _Beside:
    """A stack beside the main one that is being read."""

    def __init__(self, begin: Beginning) -> None:
        self._begin = begin
        self.frames: list[Frame] = []

    def section(self) -> Section:
        return self._begin.section(tuple(self.frames))


def find_frames(text: str, with_addresses: bool) -> tuple[Frame, ...]:
    """Return the frames that a line shows. `with_addresses`: a line with an address alone is one, too."""
    frames = parse_frames(text)
    raw = _ADDRESS.match(text) if with_addresses and not frames else None
    return (at_address(raw[1]),) if raw else frames


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


_ADDRESS = re.compile(r"\s{1,16}(?:\[<[0-9a-f]{8,16}>\] )?(0x[0-9a-f]{9,16})\s{0,4}$")
"""A frame of kmemleak's or slub's in a module that is gone."""
