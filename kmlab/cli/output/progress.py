"""Show progress on stderr: on a terminal a moving line for each busy guest, elsewhere plain lines."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kmlab.common.events import Event, EventSink, Finished, Note, Progress, Started, printable

if TYPE_CHECKING:
    from kmlab.host.process.command import ProgramRun

_REMIND = 15.0
"""Seconds between two lines about the same wait, where no line can be redrawn."""
_WIDTH = 10
"""Characters of the subjects' column; a longer subject widens it."""


@contextlib.contextmanager
def reporting() -> Iterator[EventSink]:
    """Yield a sink that shows events while the block lasts; several threads may call it."""
    if not sys.stderr.isatty():
        yield in_lines()
        return
    with _live_sink() as events:
        yield events


def in_lines() -> EventSink:
    """Return a sink that shows events as plain lines."""
    return Lines(_write_line).hear


@dataclass(slots=True)
class Lines:
    """Show events as permanent lines, each with its guest."""

    write: Callable[[str], object]
    clock: Callable[[], float] = time.monotonic
    _activities: Activities = field(init=False)
    _shown_at: dict[tuple[str, str], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._activities = Activities(self.clock)

    def hear(self, event: Event) -> None:
        with self._lock:
            for line in self._activities.hear(event):
                self.write(line)
            if isinstance(event, Note | Finished):
                return
            key, now = (event.subject, event.what), self.clock()
            if isinstance(event, Started) or now - self._shown_at.get(key, now) <= _REMIND:
                self._shown_at.setdefault(key, now)
                return
            self._shown_at[key] = now
            self.write(f"  …   {self._activities.under_way(*key)}")


@dataclass(slots=True)
class Activities:
    """Remember the current activity of each subject, and its start."""

    clock: Callable[[], float] = time.monotonic
    width: int = _WIDTH
    _began: dict[tuple[str, str], float] = field(default_factory=dict)
    _detail: dict[tuple[str, str], str] = field(default_factory=dict)

    def hear(self, event: Event) -> list[str]:
        """Record an event, and return the lines that stay on the screen."""
        if isinstance(event, Note):
            return [f"{event.subject}: {printable(event.text)}"]
        key = (event.subject, event.what)
        self.width = max(self.width, len(event.subject))
        if isinstance(event, Started):
            self._began[key] = self.clock()
            self._detail.pop(key, None)
        elif isinstance(event, Progress):
            self._detail[key] = event.detail
        else:
            self._began.pop(key, None)
            return [self._done(event)]
        return []

    def lines(self) -> list[str]:
        """Return one line for each busy subject, in a stable order: its latest activity."""
        latest = {subject: what for subject, what in self._began}
        return [self.under_way(subject, what) for subject, what in sorted(latest.items())]

    def under_way(self, subject: str, what: str) -> str:
        key = (subject, what)
        seconds = self.clock() - self._began.get(key, self.clock())
        detail = printable(self._detail.get(key, ""), 70)
        return f"{subject:<{self.width}} {what} {seconds:.0f} s  {detail}".rstrip()

    def _done(self, event: Finished) -> str:
        detail = f"  {printable(event.detail, 90)}" if event.detail else ""
        mark = "  ok  " if event.outcome == "ok" else f" {event.outcome[:4]} "
        return f"{mark}{event.subject:<{self.width}} {event.what:<28} {event.seconds:6.1f} s{detail}"


def _write_line(line: str) -> None:
    sys.stderr.write(f"{printable(line)}\n")
    sys.stderr.flush()


_writers: list[Callable[[str], None]] = [_write_line]
"""Module-level, because no event sink reaches the rooms that run programs. The last one owns the terminal now."""


@contextlib.contextmanager
def lines_written_by(write: Callable[[str], None]) -> Iterator[None]:
    """Hand the lines about programs to `write` while something else draws on the terminal."""
    _writers.append(write)
    try:
        yield
    finally:
        _writers.remove(write)


def show_program(program: ProgramRun) -> None:
    """Show a program that has ended, as a line to paste, with its duration and exit code."""
    how = "did not end in time" if program.code is None else f"exit code {program.code}"
    _writers[-1](f"$ {program.command}  # {how}, {program.seconds:.1f} s")


@contextlib.contextmanager
def _live_sink() -> Iterator[EventSink]:
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    status = Status(Text(""), console=console)
    activities = Activities()
    lock, ended = threading.Lock(), threading.Event()

    def draw() -> None:
        # A line that wraps could not be redrawn.
        cut = [Text(printable(line)[: max(console.width - 3, 20)]) for line in activities.lines()]
        status.update(Text("\n").join(cut))

    def tick() -> None:
        while not ended.wait(0.5):
            with lock:
                draw()

    def hear(event: Event) -> None:
        with lock:
            for line in activities.hear(event):
                console.print(Text(printable(line)))
            draw()

    def write(line: str) -> None:
        with lock:
            console.print(Text(printable(line)))

    ticker = threading.Thread(target=tick, daemon=True)
    with status, lines_written_by(write):
        ticker.start()
        try:
            yield hear
        finally:
            ended.set()
            ticker.join()
