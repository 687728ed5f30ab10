"""Read the guest's ring buffer during a run, as often as needed. Programs cannot write to it as the kernel."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from kmlab.common.errors import LabError
from kmlab.host.channel.ssh import Answer
from kmlab.kernel.log.records import KernelLog, parse_log

_NUMBER = re.compile(rb"\d+,(\d+),")
"""How a record of /dev/kmsg begins: its priority and its number (Documentation/ABI/testing/dev-kmsg)."""
_LARGEST = 64 << 20
"""Bytes of records that are kept."""


class RingBuffer:
    """The records since the run began. A guest returns what is new, or everything again: each record counts once."""

    def __init__(self, read: Callable[[float], Answer]) -> None:
        self._read = read
        """Asks the guest for records, with the seconds that it has."""
        self._records = bytearray()
        self._last = -1
        self._lost = False
        self._lock = threading.Lock()

    def log(self, seconds: float) -> KernelLog | None:
        """Return all records so far; None if the guest does not answer."""
        with self._lock:
            try:
                answer = self._read(seconds)
            except LabError:
                return None
            if answer.code is None:
                return None
            self._lost = self._lost or not answer.ok
            self._add(answer.out)
            log = parse_log(bytes(self._records))
            return log._replace(dropped=max(log.dropped, 1)) if self._lost else log

    def _add(self, content: bytes) -> None:
        known = False
        for line in content.splitlines(keepends=True):
            if match := _NUMBER.match(line):
                number = int(match[1][:18])
                known = number <= self._last
                self._last = max(self._last, number)
            if known:
                continue
            if len(self._records) + len(line) > _LARGEST:
                self._lost = True
                return
            self._records += line
