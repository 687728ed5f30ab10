"""Make one write on the host fail: the Nth file, folder or name that is made below a folder."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

_NAMES = frozenset({"os.mkdir", "os.rename", "os.symlink", "os.link", "os.truncate"})
"""Audit events of calls that make or move a name (https://docs.python.org/3/library/audit_events.html)."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class FailingWrites:
    """`with FailingWrites(folder, number, errno)` fails the write of that number, counted from 0; -1 only counts.

    `count` is the number of writes, and `failed` the one that failed.
    """

    def __init__(self, folder: Path, number: int, error: int) -> None:
        self.count = 0
        self.failed: str | None = None
        self._folder, self._number, self._error = os.fsencode(folder), number, error
        self._lock = threading.Lock()

    def __enter__(self) -> FailingWrites:
        _install()
        _armed.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _armed.remove(self)

    def hear(self, event: str, place: object, flags: object) -> None:
        """Count a call; raise OSError if it is the one to fail."""
        if not isinstance(place, str | bytes | os.PathLike) or not os.fsencode(place).startswith(self._folder):
            return
        if event == "open" and not (isinstance(flags, int) and flags & _WRITING):
            return
        with self._lock:
            number, self.count = self.count, self.count + 1
        if number == self._number:
            self.failed = f"{event} {os.fsdecode(os.fsencode(place))}"
            raise OSError(self._error, os.strerror(self._error), os.fsdecode(os.fsencode(place)))


_armed: list[FailingWrites] = []
_installed: list[bool] = []


def _install() -> None:
    """Install the hook of this process, which cannot be removed again (sys.addaudithook)."""
    if not _installed:
        _installed.append(True)
        sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _armed and (event == "open" or event in _NAMES):
        for each in tuple(_armed):
            each.hear(event, arguments[0], arguments[2] if event == "open" else None)
