"""Locks between kmlab's own processes: one for each guest and each thing that is made in the cache.

The kernel releases them when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from kmlab import store
from kmlab.errors import LabError
from kmlab.events import Deadline, Note, Report
from kmlab.host import command


@contextlib.contextmanager
def held(lock: Path, subject: str, report: Report, deadline: Deadline) -> Iterator[None]:
    """Hold `lock`; if another kmlab has it, say so and wait until the deadline."""
    store.make_folder(lock.parent)
    guard = filelock.FileLock(lock, thread_local=False)
    try:
        guard.acquire(timeout=0)
    except filelock.Timeout:
        _wait(guard, lock, subject, report, deadline)
    try:
        # Only others want to know it; a full disk must not keep anybody from `kmlab destroy`.
        with contextlib.suppress(OSError):
            lock.with_suffix(".holder").write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        lock.with_suffix(".holder").unlink(missing_ok=True)
        guard.release()


def _wait(guard: filelock.BaseFileLock, lock: Path, subject: str, report: Report, deadline: Deadline) -> None:
    told = False
    while not guard.is_locked:
        command.go_on()
        ours = _holder(lock) == f"process {os.getpid()}"
        if deadline.passed:
            holder = "another guest of this command" if ours else f"another kmlab ({_holder(lock)})"
            raise LabError(f"'{subject}' is still in use by {holder}", "wait for it, or end that process") from None
        if not told and not ours:
            told = True
            report(Note(subject, f"another kmlab ({_holder(lock)}) is at work here: waiting for it"))
        with contextlib.suppress(filelock.Timeout):
            guard.acquire(timeout=deadline.within(1).left, poll_interval=0.1)
        if not told and not guard.is_locked:
            told = True
            report(Note(subject, "waiting for what another guest of this command is making"))


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
    with contextlib.suppress(OSError):
        return f"process {lock.with_suffix('.holder').read_text(encoding='ascii').strip()}"
    return "another process"
