"""Read a guest's console during a run, find crashes in it, and manage the folders of runs.

The console file is on the host, so it is complete even when the guest is dead.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kmlab.common import folder_tree, paths
from kmlab.common.errors import LabError, unexpected
from kmlab.common.events import Deadline
from kmlab.host.process import command
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.parser.scanner import Scanner
from kmlab.kernel.log.records import ConsoleReader, KernelLog, Record

_FIRST, _LAST = 2000, 20000
"""Records of a run that are kept: the first and the last ones. The others are only counted."""
_POLL = 0.02
_AFTER_PANIC = 1.0
"""Seconds of silence after which a panic without its usual last line counts as complete."""
_FLOOD_ENDS, _LONGEST_FLOOD = 1.0, 60.0
"""Seconds of silence after which a flood on the console is over, and the longest wait for its end."""
_AFTER_HANG = 3.0
"""Seconds after the report of a hang before its step is stopped: more lines may come."""
_FIRST_BYTES, _LAST_BYTES = 8 << 20, 32 << 20
"""Bytes of a run's console that are kept: the first and the last ones."""
_QUESTION_SECONDS = 1.0
"""Seconds between two questions to the guest about reports on its console."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """The kernel's log of a run."""

    records: tuple[Record, ...]
    """The kernel's ring buffer if it was read completely, else the console's records."""
    whole: bool
    """Whether no record is missing in between."""
    deaf: bool
    """Whether the console fell silent."""
    lost_records: int
    """Records that came but were not kept, and those that the kernel itself lost."""

    def find_crashes(self, own_modules: frozenset[str], *, alive: bool) -> tuple[list[Crash], list[Crash]]:
        """Return every finding, and the reports that are none; code of `own_modules` is to blame before any other."""
        scanner = Scanner(own_modules, booted=True)
        scanner.feed(self.records)
        scanner.close(alive)
        return scanner.crashes, scanner.benign


class ConsoleMonitor:
    """Reads the console during a run; `over` is set when waiting for the guest no longer makes sense."""

    def __init__(
        self,
        console: Path,
        answers: Callable[[], bool] = lambda: False,
        ring: Callable[[], KernelLog | None] = lambda: None,
    ) -> None:
        self.over = threading.Event()
        self.panicked = False
        """The console says that the kernel has panicked, and the guest does not answer."""
        self.deaf = False
        """Some records of the run did not come to the console: the kernel stopped printing there, or skips some."""
        self._marks: dict[str, int] = {}
        self.begin = self.new_mark()
        """The mark where the run begins in the kernel's log."""
        self._answers = answers
        """Asks the guest whether it is alive: a real panic stops the kernel, a printed text does not."""
        self._ring = ring
        """Reads the guest's ring buffer, where programs cannot write as the kernel; None if it cannot be read."""
        self._console = console
        self._start = console.stat().st_size if console.exists() else 0
        self._freed = self._start + _FIRST_BYTES
        """Up to where the middle of the file was given back to the disk."""
        self._reader = ConsoleReader()
        self._scanner = Scanner(booted=True)
        self._head: list[Record] = []
        self._tail: deque[Record] = deque(maxlen=_LAST)
        self._seen = 0
        self._doomed: float | None = None
        self._next_question = 0.0
        """When the ring buffer may be asked again about a report that it did not have."""
        self._last_byte = time.monotonic()
        self._aside: list[Record] | None = None
        self._alive_after_all = False
        self._failed: BaseException | None = None
        """The exception that ended the reading thread."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="console")

    def __enter__(self) -> ConsoleMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def new_mark(self) -> str:
        """Return a word that nothing in the guest can guess; the log's records with it are kmlab's own."""
        word = f"kmlab-{secrets.token_hex(8)}"
        self._marks[word] = -1
        return word

    def wait_for(self, mark: str, deadline: Deadline) -> bool:
        """Wait until the mark has come to the console; return whether it has.

        While a flood is still being printed, wait beyond the deadline.
        """
        longest = Deadline(_LONGEST_FLOOD)
        while self._marks[mark] < 0 and not self.over.is_set():
            if self.deaf or longest.passed or (deadline.passed and self.quiet > _FLOOD_ENDS):
                self.deaf = True
                return False
            time.sleep(_POLL)
        return self._marks[mark] >= 0

    @contextlib.contextmanager
    def aside(self) -> Iterator[list[Record]]:
        """Collect the records that answer kmlab's own questions; they are not part of the run's log."""
        self._aside = []
        try:
            yield self._aside
        finally:
            self._aside = None

    @property
    def quiet(self) -> float:
        """Return the seconds since the console's last byte."""
        return time.monotonic() - self._last_byte

    def position(self) -> int:
        """Return the number of records so far."""
        return self._seen

    def since(self, position: int) -> list[Record]:
        """Return the records after a position; of a flood only those that are kept."""
        first = max(0, position)
        head = self._head[first:]
        skipped = self._seen - len(self._tail)
        tail = list(self._tail)
        return head + tail[max(0, first - skipped) :] if first > len(self._head) else head + tail

    def check(self) -> None:
        """Raise LabError if the console cannot be read any more: then a run must not pass."""
        if self._failed is not None:
            raise unexpected(self._failed, "the guest's console could not be read any more") from self._failed

    def finish(self, ring: KernelLog | None) -> RunLog:
        """Stop reading, and return the kernel's log. Raise LabError if the console could not be read to its end.

        `ring` is the guest's ring buffer if it could be read. It also has records that the console missed, and nothing
        that a program wrote to the serial port.
        """
        self._stop.set()
        self._thread.join()
        self.check()
        self._take(self._reader.close())
        self._scanner.close()
        records = [*self._head, *self._tail]
        lost = max(0, self._seen - len(records)) + self._reader.dropped
        if ring is None:
            return RunLog(tuple(records), not self.deaf, self.deaf, lost)
        begin = next((n for n, record in enumerate(ring.records) if self._is_mark(record, self.begin)), None)
        ours = [record for record in ring.records[(begin or 0) :] if not self._is_mark(record)]
        if begin is not None and not ring.dropped:
            return RunLog(tuple(ours), True, self.deaf, 0)
        if not self.deaf:
            return RunLog(tuple(records), True, False, lost)
        # The ring buffer does not reach back to the beginning: take the console's records, then newer ones from it.
        last = max((r.time for r in records if r.time is not None and r.facility in (None, 0)), default=0.0)
        rest = [record for record in ours if record.time is not None and record.time > last]
        return RunLog((*records, *rest), False, True, lost)

    def _is_mark(self, record: Record, word: str | None = None) -> bool:
        text = record.text.strip() if record.facility not in (None, 0) else ""
        return text == word if word else text in self._marks

    def raw(self) -> bytes:
        """Return the console's bytes since the run began: all, or the first and the last with what is missing told."""
        with self._console.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(self._start)
            if size - self._start <= _FIRST_BYTES + _LAST_BYTES:
                return file.read()
            first = file.read(_FIRST_BYTES)
            file.seek(size - _LAST_BYTES)
            missing = size - self._start - _FIRST_BYTES - _LAST_BYTES
            return first + b"\n[kmlab: %d bytes of the console are left out here]\n" % missing + file.read()

    def _free_middle(self, position: int) -> None:
        """Give the middle of a long console back to the disk: the file gets a hole there (fallocate(1))."""
        begin, end = self._freed, position - 2 * _LAST_BYTES
        if end - begin < _LAST_BYTES:
            return
        self._freed = end
        with contextlib.suppress(LabError):
            place = ["--offset", str(begin), "--length", str(end - begin)]
            command.run(["fallocate", "--punch-hole", *place, self._console], deadline=Deadline(10))

    def _watch(self) -> None:
        try:
            self._read_on()
        except BaseException as error:
            self._failed = error
            self.over.set()

    def _read_on(self) -> None:
        with self._console.open("rb") as file:
            file.seek(self._start)
            while True:
                chunk = file.read(1 << 20)
                if chunk:
                    self._last_byte = time.monotonic()
                    self._take(self._reader.feed(chunk))
                    self._free_middle(file.tell())
                elif self._stop.is_set():
                    return
                else:
                    self._judge()
                    time.sleep(_POLL)

    def _take(self, records: Iterable[Record]) -> None:
        fresh = []
        for record in records:
            if self._is_mark(record):
                self._marks[record.text.strip()] = self._seen
                continue
            if self._aside is not None:
                if len(self._aside) < _LAST:
                    self._aside.append(record)
                continue
            fresh.append(record)
            self._seen += 1
            if len(self._head) < _FIRST:
                self._head.append(record)
            else:
                self._tail.append(record)
        self._scanner.feed(fresh)
        self._judge()

    def _judge(self) -> None:
        """Find out whether waiting for the guest still makes sense."""
        silent = self._scanner.panic_complete or self.quiet > _AFTER_PANIC
        if self._scanner.panicked and silent and not self.panicked and not self._alive_after_all:
            self._alive_after_all = self._answers()
            if not self._alive_after_all:
                self.panicked = True
                self.over.set()
        if self._doomed is None and self._reports_end() and time.monotonic() > self._next_question:
            reported = time.monotonic()
            if self._kernel_agrees():
                self._doomed = reported
            self._next_question = time.monotonic() + _QUESTION_SECONDS

    def _reports_end(self) -> bool:
        """Return whether the console has a report after which the step that runs will not end."""
        if _ends_step(self._scanner):
            return True
        return self._scanner.suspect and self.quiet > _AFTER_PANIC and _ends_step(_scanned([*self._head, *self._tail]))

    def _kernel_agrees(self) -> bool:
        """Return whether the kernel's own log has such a report too. A guest that cannot be asked is believed."""
        ring = self._ring()
        if ring is None or ring.dropped:
            return True
        begin = next((n for n, record in enumerate(ring.records) if self._is_mark(record, self.begin)), 0)
        return _ends_step(_scanned(ring.records[begin:]))

    @property
    def doomed(self) -> bool:
        """Return whether a hang or deadly oops was reported long enough ago: a step still running then will not end."""
        return self._doomed is not None and time.monotonic() - self._doomed > _AFTER_HANG


def _scanned(records: Iterable[Record]) -> Scanner:
    scanner = Scanner(booted=True)
    scanner.feed(records)
    scanner.close()
    return scanner


def _ends_step(scanner: Scanner) -> bool:
    """Return whether something was reported after which a step does not end."""
    return any(crash.kind == "hang" or crash.deadly for crash in scanner.crashes)


class Follower:
    """Reads new kernel records from a console, even if a restore replaces the file.

    With `at_end`, skip the content that exists at first.
    """

    def __init__(self, console: Path, *, at_end: bool = False) -> None:
        self._console = console
        self._file: BinaryIO | None = None
        self._reader = ConsoleReader()
        self._at_end = at_end

    def read(self) -> Iterator[Record]:
        """Yield the kernel's records since the last call; none if the file does not exist yet."""
        if self._file is not None:
            yield from self._rest(self._file)
            if not self._replaced(self._file):
                return
        yield from self.close()
        with contextlib.suppress(OSError):
            self._file = self._console.open("rb")
            if self._at_end:
                self._file.seek(0, os.SEEK_END)
            yield from self._rest(self._file)
        self._at_end = False

    def close(self) -> Iterator[Record]:
        """Close the file, and return the record of an unfinished last line."""
        last, self._reader = self._reader.close(), ConsoleReader()
        if self._file is not None:
            self._file.close()
        self._file = None
        return (record for record in last if record.from_kernel)

    def _rest(self, file: BinaryIO) -> Iterator[Record]:
        while chunk := file.read(1 << 20):
            yield from (record for record in self._reader.feed(chunk) if record.from_kernel)

    def _replaced(self, file: BinaryIO) -> bool:
        with contextlib.suppress(OSError):
            now, ours = self._console.stat(), os.fstat(file.fileno())
            return (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino) or now.st_size < file.tell()
        return True


def new_run_folder(runs: Path, module: str, guest: str) -> Path:
    """Create a folder for one run's evidence. The names sort by time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return paths.make_folder(runs / f"{stamp}-{secrets.token_hex(2)}-{module}-{guest}")


def keep_latest(runs: Path, count: int, size: int, spare: Collection[Path] = ()) -> None:
    """Remove the oldest runs beyond `count` and beyond `size` bytes in all; the newest and `spare` always stay."""
    folders = sorted((f for f in runs.iterdir() if f.is_dir()), reverse=True) if runs.is_dir() else []
    total = 0
    for number, folder in enumerate(folders):
        # Another guest's run may write in its folder, or remove one, at this moment.
        with contextlib.suppress(OSError):
            total += folder_tree.size_of(folder)
        if folder not in spare and number and (number >= count or total > size):
            with contextlib.suppress(OSError):
                folder_tree.remove_tree(folder)


def dmesg(records: Sequence[Record]) -> str:
    """Return the records as `dmesg` prints them."""
    return "".join(
        f"[{record.time:12.6f}] {record.text}\n" if record.time is not None else f"{record.text}\n"
        for record in records
    )
