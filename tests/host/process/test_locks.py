"""Test locks between two kmlabs: the second one waits with a message; a killed one holds no lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmlab.common.errors import LabError
from kmlab.common.events import Deadline, Event, Note, silent
from kmlab.host.process import locks

HOLD = """\
import sys
from pathlib import Path
from kmlab.common.events import Deadline, silent
from kmlab.host.process import locks
with locks.held(Path(sys.argv[1]), "debian", silent, Deadline(5)):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def another(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it reads a line, or is killed."""
    argv = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_free_lock_is_acquired_without_a_message(tmp_path: Path) -> None:
    heard: list[Event] = []
    lock = tmp_path / "new" / "debian.lock"
    with locks.held(lock, "debian", heard.append, Deadline(1)):
        assert not locks.is_free(lock)
    assert heard == []
    assert locks.is_free(lock)


def test_a_waiting_process_names_the_holder_and_then_continues(tmp_path: Path) -> None:
    lock = tmp_path / "debian.lock"
    heard: list[Event] = []
    with another(lock) as other:
        assert other.stdin is not None
        threading.Timer(0.3, other.stdin.close).start()
        with locks.held(lock, "debian", heard.append, Deadline(10)):
            pass
        assert heard == [Note("debian", f"waiting for another kmlab (process {other.pid}), which uses it")]


def test_another_guest_of_the_same_command_is_never_called_another_kmlab(tmp_path: Path) -> None:
    lock = tmp_path / "base.lock"
    heard: list[Event] = []
    with locks.held(lock, "one", silent, Deadline(1)):
        # As it is for a moment: taken, and its holder not yet written down.
        lock.with_suffix(".holder").write_text("")
        with (
            pytest.raises(LabError, match="'two' is still in use by another guest of this command"),
            locks.held(lock, "two", heard.append, Deadline(0.3)),
        ):
            pass
    assert [event for event in heard if isinstance(event, Note) and "another kmlab" in event.text] == []
    assert locks.is_free(lock)


def test_a_process_that_waited_too_long_names_the_holder(tmp_path: Path) -> None:
    lock = tmp_path / "debian.lock"
    with another(lock) as other:
        with (
            pytest.raises(LabError, match=f"still in use by another kmlab .process {other.pid}"),
            locks.held(lock, "debian", silent, Deadline(0.2)),
        ):
            pass
        assert not locks.is_free(lock)


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "debian.lock"
    with another(lock) as other:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert locks.is_free(lock)
        with locks.held(lock, "debian", silent, Deadline(1)):
            pass


def test_a_lock_is_released_when_its_block_raises(tmp_path: Path) -> None:
    lock = tmp_path / "debian.lock"
    with pytest.raises(KeyboardInterrupt), locks.held(lock, "debian", silent, Deadline(1)):
        raise KeyboardInterrupt
    assert locks.is_free(lock)


def test_a_full_disk_does_not_prevent_locking(tmp_path: Path) -> None:
    (tmp_path / "debian.holder").symlink_to("/dev/full")
    with locks.held(tmp_path / "debian.lock", "debian", silent, Deadline(1)):
        assert not locks.is_free(tmp_path / "debian.lock")
