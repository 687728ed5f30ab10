"""Lock guests and artifacts of the cache between kmlab's own processes.

The kernel releases the locks when the process ends, even when it is killed.
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

_held_here: set[Path] = set()
"""The locks held by any thread of this process."""
_acquiring = threading.Lock()
_GRACE = 1.0
"""Seconds that a guest waits for another guest of the same command without a message."""


@contextlib.contextmanager
def held(lock: Path, subject: str, report: EventSink, deadline: Deadline) -> Iterator[None]:
    """Hold `lock`. If another kmlab has it, report that and wait; raise LabError at the deadline."""
    paths.make_folder(lock.parent)
    guard = filelock.FileLock(lock, thread_local=False)
    _wait(guard, lock, subject, report, deadline)
    try:
        # The file only serves the messages of other processes; a full disk must not prevent `kmlab destroy`.
        with contextlib.suppress(OSError):
            lock.with_suffix(".holder").write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        lock.with_suffix(".holder").unlink(missing_ok=True)
        with _acquiring:
            _held_here.discard(lock)
            guard.release()


def _wait(guard: filelock.BaseFileLock, lock: Path, subject: str, report: EventSink, deadline: Deadline) -> None:
    reported, grace = False, deadline.within(_GRACE)
    while not _acquire(guard, lock):
        command.check_cancelled()
        same_command = lock in _held_here
        if deadline.passed:
            holder = "another guest of this command" if same_command else f"another kmlab ({_holder(lock)})"
            raise LabError(f"'{subject}' is still in use by {holder}", "wait for it, or end that process") from None
        if not reported and (grace.passed or not same_command):
            reported = True
            other = f"waiting for another kmlab ({_holder(lock)}), which uses it"
            report(
                Note(
                    subject,
                    "waiting for another guest of this command, which prepares the same" if same_command else other,
                )
            )
        time.sleep(deadline.within(0.1).left)


def _acquire(guard: filelock.BaseFileLock, lock: Path) -> bool:
    """Acquire the lock if it is free. Record it in one step, so that it is never attributed to another process."""
    with _acquiring:
        try:
            guard.acquire(timeout=0)
        except filelock.Timeout:
            return False
        _held_here.add(lock)
        return True


@contextlib.contextmanager
def shared(lock: Path) -> Iterator[None]:
    """Hold a shared lock (flock(2)). Wait while another process holds it exclusively."""
    paths.make_folder(lock.parent)
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[bool]:
    """Yield True and hold `lock` exclusively, or yield False at once if another process holds it."""
    paths.make_folder(lock.parent)
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def is_free(lock: Path) -> bool:
    """Return whether no process holds the lock at this moment."""
    guard = filelock.FileLock(lock, thread_local=False)
    try:
        guard.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        return False
    guard.release()
    return True


def _holder(lock: Path) -> str:
    """Return the process that holds the lock, if its file already names it."""
    with contextlib.suppress(OSError):
        if number := lock.with_suffix(".holder").read_text(encoding="ascii").strip():
            return f"process {number}"
    return "another process"
