"""Locks between kmlab's own processes: one for each guest and each thing that is made in the cache.

The kernel releases them when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from kmlab.common import paths
from kmlab.common.errors import LabError
from kmlab.common.events import Deadline, EventSink, Note
from kmlab.host.process import command

_ours: set[Path] = set()
"""Held by this process, in whichever thread."""
_taking = threading.Lock()
_GRACE = 1.0
"""Seconds that a guest waits without a word for another one of its command."""


@contextlib.contextmanager
def held(lock: Path, subject: str, report: EventSink, deadline: Deadline) -> Iterator[None]:
    """Hold `lock`; if another kmlab has it, say so and wait until the deadline."""
    paths.make_folder(lock.parent)
    guard = filelock.FileLock(lock, thread_local=False)
    _wait(guard, lock, subject, report, deadline)
    try:
        # Only others want to know it; a full disk must not keep anybody from `kmlab destroy`.
        with contextlib.suppress(OSError):
            lock.with_suffix(".holder").write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        lock.with_suffix(".holder").unlink(missing_ok=True)
        with _taking:
            _ours.discard(lock)
            guard.release()


def _wait(guard: filelock.BaseFileLock, lock: Path, subject: str, report: EventSink, deadline: Deadline) -> None:
    told, grace = False, deadline.within(_GRACE)
    while not _taken(guard, lock):
        command.check_cancelled()
        ours = lock in _ours
        if deadline.passed:
            holder = "another guest of this command" if ours else f"another kmlab ({_holder(lock)})"
            raise LabError(f"'{subject}' is still in use by {holder}", "wait for it, or end that process") from None
        if not told and (grace.passed or not ours):
            told = True
            theirs = f"another kmlab ({_holder(lock)}) is at work here: waiting for it"
            report(Note(subject, "waiting for what another guest of this command is making" if ours else theirs))
        time.sleep(deadline.within(0.1).left)


def _taken(guard: filelock.BaseFileLock, lock: Path) -> bool:
    """Take it if nobody has it. At one time, so that a lock of this process is never thought another's."""
    with _taking:
        try:
            guard.acquire(timeout=0)
        except filelock.Timeout:
            return False
        _ours.add(lock)
        return True


@contextlib.contextmanager
def shared(lock: Path) -> Iterator[None]:
    """Hold `lock` beside others who hold it so (flock(2)); waits while somebody has it alone."""
    paths.make_folder(lock.parent)
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Hold `lock` while nobody else does; False, at once, if somebody does."""
    paths.make_folder(lock.parent)
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def is_free(lock: Path) -> bool:
    """Whether nobody holds it at this moment."""
    guard = filelock.FileLock(lock, thread_local=False)
    try:
        guard.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        return False
    guard.release()
    return True


def _holder(lock: Path) -> str:
    """Who has it, as far as its file says so yet."""
    with contextlib.suppress(OSError):
        if number := lock.with_suffix(".holder").read_text(encoding="ascii").strip():
            return f"process {number}"
    return "another process"
