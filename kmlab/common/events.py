"""Define the events that report progress to the user. Only `cli.render` shows them."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kmlab.common.errors import KmlabError


@dataclass(frozen=True, slots=True)
class Started:
    """Something that may take long has started."""

    subject: str
    """The guest, image or module that it concerns."""
    what: str
    """A present participle: "baking the base"."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a started thing is. It is sent on each change, at most a few times a second."""

    subject: str
    what: str
    done: float | None = None
    total: float | None = None
    unit: str = ""
    detail: str = ""
    """The last line of output of the program that is waited for."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A started thing ended."""

    subject: str
    what: str
    seconds: float
    detail: str = ""
    outcome: str = "ok"
    """ok, failed, hang, lost or skipped."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the user should know although nothing failed."""

    subject: str
    text: str


Event = Started | Progress | Finished | Note
EventSink = Callable[[Event], None]
AskPassphrase = Callable[[str], str | None]
"""Asks the user for the passphrase of the key with this name. None if nobody can be asked."""


def silent(event: Event) -> None:
    """Ignore the event."""


@dataclass(slots=True)
class Stage:
    """`with Stage(report, "debian", "baking the base"):` sends Started, then Finished, also after a failure."""

    report: EventSink
    subject: str
    what: str
    detail: str = ""
    outcome: str = "ok"
    began: float = field(default=0.0, init=False)

    def __enter__(self) -> Stage:
        self.began = time.monotonic()
        self.report(Started(self.subject, self.what))
        return self

    def progress(self, done: float | None = None, total: float | None = None, unit: str = "", detail: str = "") -> None:
        self.report(Progress(self.subject, self.what, done, total, unit, detail))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, KmlabError):
            outcome = self.outcome if kind is None else "failed"
            self.report(Finished(self.subject, self.what, self.seconds, self.detail, outcome))


class Part(NamedTuple):
    """One part of a longer piece of work, for whoever asks where the time went."""

    name: str
    began: float
    """By the monotonic clock, in seconds."""
    seconds: float


class Timings:
    """The parts of one piece of work, as they end."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block as a part of that name."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.parts.append(Part(name, began, time.monotonic() - began))


class Deadline:
    """A point in time that all parts of a task share, instead of a timeout for each part."""

    __slots__ = ("_end", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Return the seconds until the deadline, never negative."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._end

    def within(self, seconds: float) -> Deadline:
        """Return a deadline of at most `seconds` that does not end after this one."""
        return Deadline(min(seconds, self.left))


def printable(text: str, limit: int = 0) -> str:
    """Make every control, escape and bidirectional character of `text` visible, so that it is safe to print.

    All text from a guest passes through here before a user sees it. `limit` > 0 caps the length.
    """
    safe = text
    if not text.isprintable():
        safe = "".join(c if c == "\t" or c.isprintable() else _visible(c) for c in text)
    if limit and len(safe) > limit:
        safe = safe[: limit - 1] + "…"
    return safe


def escape_surrogates(value: Any) -> Any:
    """Escape each byte in the texts of a JSON document that is not UTF-8, as `printable` does.

    A file name can have such bytes. Python stores them as lone surrogates (PEP 383), which many JSON parsers reject.
    """
    if isinstance(value, str):
        return _SURROGATE.sub(lambda match: _visible(match[0]), value)
    if isinstance(value, dict):
        return {escape_surrogates(key): escape_surrogates(each) for key, each in value.items()}
    return [escape_surrogates(each) for each in value] if isinstance(value, list | tuple) else value


_SURROGATE = re.compile("[\ud800-\udfff]")


def _visible(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
