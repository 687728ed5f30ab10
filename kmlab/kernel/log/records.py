"""The kernel's log as records, from any text it was saved in (Documentation/ABI/testing/dev-kmsg, dmesg(1)).

A line may come from a console (`<6>[   12.345678][  T123] text`), from /dev/kmsg (`6,12,34567,-;text`), from
dmesg in its several shapes, from the journal or syslog, or from nobody we know: firmware, GRUB, systemd.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kmlab.common.events import printable

LINE_CAP = 8192
"""Bytes of one line that are read, and characters of one record's text that are kept."""

LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
# The names dmesg -x prints, in the order of syslog's facility numbers; 12 to 15 have no name there.
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("res0", "res1", "res2", "res3"),
    *(f"local{n}" for n in range(8)),
)


class Record(NamedTuple):
    """One line of the kernel's log."""

    time: float | None
    """Seconds since boot, where the line says them."""
    level: str | None
    """One of LEVELS, where the line says it."""
    text: str
    """The message: one line, no control characters, at most LINE_CAP characters."""
    caller: str | None
    """Who printed it, with CONFIG_PRINTK_CALLER: `T123` (a task) or `C0` (a CPU outside of any task)."""
    facility: int | None
    """0 is the kernel, anything else a program that wrote to /dev/kmsg; None where the line does not say."""

    @property
    def from_kernel(self) -> bool:
        """Whether the kernel may have said it, as against firmware, a boot loader or a program."""
        if self.facility is not None:
            return self.facility == 0
        return self.time is not None or self.caller is not None

    @property
    def prefixed(self) -> bool:
        """Whether the line says itself who said it."""
        return self.facility is not None or self.from_kernel


class KernelLog(NamedTuple):
    """All that was read from one log."""

    records: tuple[Record, ...]
    dropped: int
    """Messages that the kernel says it lost, gaps in /dev/kmsg's numbers, and lines cut at LINE_CAP."""


def parse_log(data: bytes) -> KernelLog:
    """The records of a whole saved log.

    A log without a single kernel prefix (printk.time=0, or copied by hand) is taken to be all the kernel's.
    """
    reader = ConsoleReader()
    records: list[Record] = []
    # In pieces, so that a flood is not copied as a whole.
    for start in range(0, len(data), 1 << 20):
        records += reader.feed(data[start : start + (1 << 20)])
    records += reader.close()
    if not any(r.prefixed for r in records):
        records = [r._replace(facility=0) for r in records]
    return KernelLog(tuple(records), reader.dropped)


class ConsoleReader:
    """Turns bytes into records as they come, in linear time and with one line held at most."""

    def __init__(self) -> None:
        self.dropped = 0
        """As KernelLog.dropped, so far."""
        self._held = bytearray()
        self._over = False
        self._kmsg = False
        """The last line was a /dev/kmsg record, so that an indented one may be its dictionary."""
        self._sequence: int | None = None

    def feed(self, data: bytes) -> list[Record]:
        """The records that these bytes complete."""
        # A carriage return ends a line here: empty lines are nobody's, and what a boot loader or systemd
        # overwrites on its line is then not glued to what comes after.
        lines = data.replace(b"\r", b"\n").split(b"\n")
        self._hold(lines[0])
        if len(lines) == 1:
            return []
        records = self._release()
        last = lines.pop()
        for line in lines[1:]:
            if line:
                self.dropped += len(line) > LINE_CAP
                records += self._read(line[:LINE_CAP])
        self._hold(last)
        return records

    def close(self) -> list[Record]:
        """The record of a last line that was not ended."""
        return self._release()

    def _hold(self, part: bytes) -> None:
        room = LINE_CAP - len(self._held)
        if len(part) > room:
            self._over = True
            part = part[:room]
        self._held += part

    def _release(self) -> list[Record]:
        line = bytes(self._held)
        self._held.clear()
        self.dropped += self._over
        self._over = False
        return self._read(line) if line else []

    def _read(self, line: bytes) -> list[Record]:
        if b"," in line[:7]:
            found = _KMSG.match(line)
            if found:
                return self._read_kmsg(found)
        if self._kmsg and line[:1] == b" " and b"=" in line:
            return []
        self._kmsg = False
        records = _read_line(_decode(line))
        if b"printk messages dropped" in line:
            for record in records:
                lost = _LOST.search(record.text) if record.facility in (None, 0) else None
                self.dropped += int(lost[1]) if lost else 0
        return records

    def _read_kmsg(self, found: re.Match[bytes]) -> list[Record]:
        priority, sequence, microseconds = int(found[1]), int(found[2]), int(found[3])
        if self._sequence is not None and sequence > self._sequence + 1:
            self.dropped += sequence - self._sequence - 1
        self._sequence = sequence
        self._kmsg = True
        caller = _KMSG_CALLER.search(found[4])
        raw = _KMSG_ESCAPE.sub(lambda m: bytes([int(m[1], 16)]), found[5])
        return [
            Record(
                microseconds / 1e6,
                LEVELS[priority & 7],
                _clean(_decode(text)),
                caller[1].decode() if caller else None,
                priority >> 3,
            )
            # A message of several lines is one record there, and several on a console.
            for text in raw.replace(b"\r", b"\n").split(b"\n")
        ]


_KMSG = re.compile(rb"(\d{1,6}),(\d{1,19}),(\d{1,19}),([^;]{0,80});(.*)", re.DOTALL)
_KMSG_CALLER = re.compile(rb"caller=([TC]\d{1,9})")
_KMSG_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")
_LOST = re.compile(r"\*\* (\d{1,12}) printk messages dropped")

# CSI with its parameters, the string sequences up to their terminator, then any other pair. A sequence that
# lost its end must not eat the message behind it: hence no `<` among the parameters, and only a pair where
# the terminator is missing.
_ESCAPES = re.compile(
    r"\x1b(?:\[[?>=!]?[0-9;:]*[ -/]?[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[ -/]*[0-;=-~]|)"
)

_TIME = r"\[ {0,12}(\d{1,10}\.\d{1,9})\]"
_CALLER = r"\[ {0,12}([TC]\d{1,9})[^\]\n]{0,40}\]"
_CONSOLE = re.compile(rf"(?:<(\d{{1,5}})>)?(?:{_TIME}(?: ?{_CALLER})?|{_CALLER}) ?(.*)", re.DOTALL)
_BARE = re.compile(r"<(\d{1,3})>(.*)", re.DOTALL)
_EXTENDED = re.compile(r"(\w{3,8}) {0,6}:(\w{3,6}) {0,3}: ?(.*)", re.DOTALL)
# dmesg -T, -H and --reltime: the time of day, or since the last line, which are not seconds since boot.
_DAY = re.compile(
    r"\[(?:[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}|[A-Z][a-z]{2} ?\d{1,2} \d\d:\d\d"
    r"| {0,12}[+<] {0,12}\d{1,10}\.\d{1,9}>?)\] ?(.*)",
    re.DOTALL,
)
_STAMP = (
    r"(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d{1,9})?"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[\d.,]{0,10}(?:Z|[+-]\d\d:?\d\d)?)"
)
_JOURNAL = re.compile(rf"(?:{_STAMP}|{_TIME}) (\S{{1,255}}) ([^\s:\[]{{1,64}})(?:\[\d{{1,10}}\])?: ?(.*)", re.DOTALL)
_STAMPED = re.compile(rf"{_STAMP} ?(.*)", re.DOTALL)
# In the middle of a line somebody else began, such as a login prompt.
_WITHIN = re.compile(r"(?:<\d{1,5}>)?\[ {0,12}\d{1,10}\.\d{6}\](?:\[ {0,12}[TC]\d{1,9}[^\]\n]{0,40}\])? ")


def _decode(line: bytes) -> str:
    text = line.decode("utf-8", "backslashreplace")
    return _ESCAPES.sub("", text) if "\x1b" in text else text


def _clean(text: str) -> str:
    if len(text) <= LINE_CAP and text.isprintable():
        return text
    return printable(text, LINE_CAP)


def _read_line(line: str) -> list[Record]:
    first = line[:1]
    if first in "<[":
        found = _CONSOLE.match(line)
        if found:
            return [_console(found)]
    other = _other(line, first)
    if other:
        return [other]
    within = _WITHIN.search(line)
    if not within:
        return [Record(None, None, _clean(line), None, None)] if line.strip() else []
    before = line[: within.start()]
    records = [Record(None, None, _clean(before), None, None)] if before.strip(" >|") else []
    found = _CONSOLE.match(line, within.start())
    return [*records, _console(found)] if found else records


def _console(found: re.Match[str]) -> Record:
    priority, time, caller, alone, text = found.groups()
    seconds = None if time is None else float(time)
    if priority is None:
        # journalctl -o short-monotonic looks like a console, but for the host and the program that follow.
        if time is not None and ": " in text and caller is None:
            journal = _JOURNAL.match(found.string, found.start())
            if journal and journal[3] == "kernel":
                return Record(seconds, None, _clean(journal[4]), None, 0)
        return Record(seconds, None, _clean(text), caller or alone, None)
    number = int(priority)
    return Record(seconds, LEVELS[number & 7], _clean(text), caller or alone, number >> 3)


def _other(line: str, first: str) -> Record | None:
    """A line that begins in one of the rarer ways of naming the kernel, or None."""
    if first == "<":
        bare = _BARE.match(line)
        return Record(None, LEVELS[int(bare[1]) & 7], _clean(bare[2]), None, int(bare[1]) >> 3) if bare else None
    if first == "[":
        day = _DAY.match(line)
        return Record(None, None, _clean(day[1]), None, 0) if day else None
    if first.islower():
        return _extended(line)
    return _journal(line) if first.isupper() or first.isdigit() else None


def _extended(line: str) -> Record | None:
    """`kern  :warn  : [   12.345678] text`, as dmesg -x says it."""
    found = _EXTENDED.match(line)
    if not found or found[1] not in FACILITIES or found[2] not in LEVELS:
        return None
    facility = FACILITIES.index(found[1])
    if found[3][:1] == "[":
        for inner in _read_line(found[3]):
            return inner._replace(level=found[2], facility=facility)
    return Record(None, found[2], _clean(found[3]), None, facility)


def _journal(line: str) -> Record | None:
    """A line with the time of day in front, and perhaps a host and a program."""
    found = _JOURNAL.match(line)
    if found:
        if found[3] != "kernel":
            return Record(None, None, _clean(line), None, None)
        # rsyslog keeps the kernel's own prefix behind its own.
        console = _CONSOLE.match(found[4]) if found[4][:1] == "[" else None
        return _console(console)._replace(facility=0) if console else Record(None, None, _clean(found[4]), None, 0)
    stamped = _STAMPED.match(line) if line[0].isdigit() else None
    if not stamped or not stamped[1]:
        return None
    # dmesg --time-format iso, or a collector's stamp before a console line.
    console = _CONSOLE.match(stamped[1]) if stamped[1][:1] in "<[" else None
    return _console(console) if console else Record(None, None, _clean(stamped[1]), None, 0)
