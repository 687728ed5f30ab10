"""Read the kernel's log as records, from any text it was saved in (Documentation/ABI/testing/dev-kmsg, dmesg(1)).

A line may come from a console (`<6>[   12.345678][  T123] text`), from /dev/kmsg (`6,12,34567,-;text`), from
dmesg in its several shapes, from the journal or syslog, or from nobody we know: firmware, GRUB, systemd. What people
paste is quoted, indented, joined or told as JSON besides. `_FORMATS` has a row for each way to name the kernel; no row
knows the names of months, because they differ from one language to the next.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kmlab.common.events import printable
from kmlab.kernel.log.fields import FieldReader

LINE_CAP = 8192
"""Bytes of one line that are read, and characters of one record's text that are kept."""
_PASTED_AS = (b"<br", b"</", b"&", b"\\n", b"\xc2\xa0", b"^[[", b"^M", b"#033[", b"#011")
"""Signs that a text may not be as a program printed it."""
_TAG_SIGNS = 2
"""So many of them have nothing of _RARE."""
_PASTED = re.compile(
    rb"<br|</(?!(?:TASK|IRQ|NMI|SOFTIRQ|EOI|EOE|ENTRY_TRAMPOLINE|#\w{2,4})>)|&#?\w{1,31};|\\n|\xc2\xa0|\^\[\[|\^M|#033\[|#011"
)
"""The same without what kernels print themselves: the ends of a stack, addresses of locks."""
_RARE = b"&^\\\xc2#\x1b"
"""Bytes that hardly a line of a kernel's has, and that all other signs have: found at once in all of a text."""
_PASTED_CAP = 1 << 20
"""Bytes of one line of a pasted log, which may hold many records."""

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
    """Read the records of a whole saved log.

    A log without a single kernel prefix (printk.time=0, or copied by hand) is taken to be all the kernel's.
    """
    reader = ConsoleReader(pasted=True)
    records: list[Record] = []
    # In pieces, so that a flood is not copied as a whole.
    for start in range(0, len(data), 1 << 20):
        records += reader.feed(data[start : start + (1 << 20)])
    records += reader.close()
    if not any(r.prefixed for r in records):
        records = [r._replace(facility=0) for r in records]
    return KernelLog(tuple(records), reader.dropped)


class ConsoleReader:
    """Turns bytes into records as they come, in linear time and with one line held at most.

    `pasted` is for a text that somebody saved or sent: all of its formats are read. On a live console only the kernel's
    own prefix counts, because anything else there may be a program's.
    """

    def __init__(self, *, pasted: bool = False) -> None:
        self.dropped = 0
        """As KernelLog.dropped, so far."""
        self._pasted = pasted
        self._cap = _PASTED_CAP if pasted else LINE_CAP
        self._held = bytearray()
        self._over = False
        self._kmsg = False
        """The last line was a /dev/kmsg record, so that an indented one may be its dictionary."""
        self._sequence: int | None = None
        self._fields = FieldReader()
        self._begun = False
        self._as_is = False
        """Nothing in the bytes at hand says that they are of a page, or escaped."""
        self._plain = False
        """Nor are there colours in them or lost messages: most lines then are the kernel's own, and quickly read."""

    def feed(self, data: bytes) -> list[Record]:
        """Read the records that these bytes complete."""
        # Looked for once in all of it, and only where it is found in each line.
        if self._pasted:
            whole = bytes(self._held) + data if self._held else data
            rare = len(whole.translate(None, _RARE)) != len(whole)
            doubtful = any(sign in whole for sign in _PASTED_AS[: None if rare else _TAG_SIGNS])
            self._as_is = not (doubtful and _PASTED.search(whole))
            self._plain = self._as_is and not (rare and b"\x1b" in whole) and b"printk messages dropped" not in whole
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
                self.dropped += len(line) > self._cap
                records += self._read(line[: self._cap])
        self._hold(last)
        return records

    def close(self) -> list[Record]:
        """Read the record of a last line that was not ended."""
        records = self._release()
        if self._pasted and self._fields.busy:
            records += self._read_message(self._fields.close())
        return records

    def _hold(self, part: bytes) -> None:
        room = self._cap - len(self._held)
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
        if self._plain and line[0] in b"<[" and not self._fields.busy:
            text = line.decode("utf-8", "backslashreplace").rstrip()
            if text.count("] ") < 2 and len(text) <= LINE_CAP:
                found = _CONSOLE.match(text)
                if found:
                    self._kmsg, self._begun = False, True
                    return [_console(found)]
        if b"," in line[:7]:
            kmsg = _KMSG.match(line)
            if kmsg:
                return self._read_kmsg(kmsg)
        if self._kmsg and line[:1] == b" " and b"=" in line:
            return []
        self._kmsg = False
        records = self._read_pasted(line) if self._pasted else _read_line(_decode(line))
        if b"printk messages dropped" in line:
            for record in records:
                lost = _LOST.search(record.text) if record.facility in (None, 0) else None
                self.dropped += int(lost[1]) if lost else 0
        return records

    def _read_pasted(self, line: bytes) -> list[Record]:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(b"\xef\xbb\xbf")
        text = _decode(line).rstrip()
        as_is = self._as_is or not _PASTED.search(line)
        if not as_is:
            text = _SPELLED.sub(_respelled, html.unescape(_TAGS.sub("", text)).replace("\xa0", " ")).rstrip()
            return [record for part in _BREAK.split(text) for record in self._read_text(part)]
        return self._read_text(text)

    def _read_text(self, text: str) -> list[Record]:
        """Read what was pasted as one line and may be several."""
        if self._fields.takes(text):
            return self._read_message(self._fields.feed(text))
        records = self._read_message(self._fields.close()) if self._fields.busy else []
        many = text.count("] ") > 1 or text.count(" kernel: ") > 1 or (text[:2] == "20" and text.count(",") > 1)
        if len(text) <= LINE_CAP and not many:
            return records + _read_pasted_line(text)
        for piece in _unglued(text):
            self.dropped += len(piece) > LINE_CAP
            records += _read_pasted_line(piece[:LINE_CAP])
        return records

    def _read_message(self, found: list[tuple[dict[str, str], str]]) -> list[Record]:
        """Read messages that came as fields; each line of one is a record."""
        records = []
        for fields, message in found:
            for text in message[:_PASTED_CAP].split("\n"):
                records += _from_fields(fields, text[:LINE_CAP]) if text.strip() else []
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

_CALLER = r"\[ {0,12}([TC]\d{1,9})[^\]\n]{0,40}\]"
_CONSOLE = re.compile(
    rf"(?:<(\d{{1,5}})>)?(?:\[ {{0,12}}(\d{{1,10}}\.\d{{1,9}})\](?: ?{_CALLER})?|{_CALLER}) ?(.*)", re.DOTALL
)
# Seconds since boot in other spellings. With `@2` a vendor adds the CPU, with `s` the unit; `dmesg -d` and journalctl
# add what went by since the line before. A language with a decimal comma has one here, too.
_ODD_CONSOLE = re.compile(
    r"(?:<(\d{1,5})>)?\[ {0,12}(\d{1,10}[.,]\d{1,9})(?:s|@\d{1,3}| {0,3}[<+] {0,12}\d{1,10}[.,]\d{1,9} {0,2}>?)?\]"
    rf"(?: ?{_CALLER})?() ?(.*)",
    re.DOTALL,
)
_BARE = re.compile(r"<(\d{1,3})>(.*)", re.DOTALL)
# In the middle of a line somebody else began, such as a login prompt.
_WITHIN = re.compile(r"(?:<\d{1,5}>)?\[ {0,12}\d{1,10}\.\d{6}\](?:\[ {0,12}[TC]\d{1,9}[^\]\n]{0,40}\])? ")
# Who printed the line, as vendors of phones and boards have added it behind the time: Samsung's and Unisoc's name the
# CPU and the task, MediaTek's and HiSilicon's the same in another order.
_VENDORS = frozenset("[(c")
_VENDOR = re.compile(
    r" ?(?:\[\d{1,3}: {0,16}[^\]\n:]{1,24}: {0,8}(?P<samsung>\d{1,9})\] ?"
    r"|\(\d{1,3}\)\[(?P<mediatek>\d{1,9}):[^\]\n]{1,24}\]"
    r"|\[pid:(?P<hisilicon>\d{1,9}),cpu\d{1,3},[^\]\n]{1,24}\] ?"
    r"|c\d{1,2} {1,6}(?P<unisoc>\d{1,9}) )"
)
# journalctl -o short-monotonic looks like a console, but for the host and the program that follow.
_MONOTONIC = re.compile(r"(?:\S{1,255} )?kernel: ?")


def _decode(line: bytes) -> str:
    text = line.decode("utf-8", "backslashreplace")
    return _ESCAPES.sub("", text) if "\x1b" in text else text


def _clean(text: str) -> str:
    if len(text) <= LINE_CAP and text.isprintable():
        return text
    return printable(text, LINE_CAP)


def _read_line(line: str) -> list[Record]:
    """Read the records of a line on a console."""
    first = line[:1]
    if first in "<[":
        found = _CONSOLE.match(line)
        if found:
            return [_console(found)]
        bare = _BARE.match(line) if first == "<" else None
        if bare:
            return [_with_priority(bare[1], _clean(bare[2]))]
    return _read_within(line)


def _read_within(line: str) -> list[Record]:
    within = _WITHIN.search(line) if "] " in line else None
    if not within:
        return [Record(None, None, _clean(line), None, None)] if line.strip() else []
    before = line[: within.start()]
    records = [Record(None, None, _clean(before), None, None)] if before.strip(" >|") else []
    found = _CONSOLE.match(line, within.start())
    return [*records, _console(found)] if found else records


def _with_priority(priority: str, text: str) -> Record:
    return Record(None, LEVELS[int(priority) & 7], text, None, int(priority) >> 3)


def _console(found: re.Match[str]) -> Record:
    priority, time, caller, alone, text = found.groups()
    try:
        seconds = None if time is None else float(time)
    except ValueError:
        seconds = float(time.replace(",", "."))
    caller = caller or alone or None
    begin = text[:1]
    if begin in _VENDORS or (begin == " " and text[1:2] == "("):
        vendor = _VENDOR.match(text)
        if vendor:
            text = text[vendor.end() :]
            caller = f"T{next(pid for pid in vendor.groups() if pid)}"
    if priority is None:
        if "kernel: " in text and time is not None and caller is None:
            journal = _MONOTONIC.match(text)
            if journal:
                return Record(seconds, None, _clean(text[journal.end() :]), None, 0)
        return Record(seconds, None, _clean(text), caller, None)
    number = int(priority)
    return Record(seconds, LEVELS[number & 7], _clean(text), caller, number >> 3)


# --- what people paste ---------------------------------------------------------------------------------------------


_QUOTE = re.compile(r"(?:[>|] ?){1,16}")
# Control characters as editors and rsyslog spell them: colours go, a tab is one.
_SPELLED = re.compile(r"(?:\^\[|#033)\[[0-9;]{0,16}[A-Za-z]|\^M$|(?P<tab>#011)")
_BREAK = re.compile(r"<br\b[^<>]{0,80}>", re.IGNORECASE)
_TAGS = re.compile(r"</?(?:pre|p|code|div|span|tt)\b[^<>]{0,200}>", re.IGNORECASE)

# The time of day among up to four words of a date, in whatever language, or seconds since 1970; then a host, a time
# zone, a year, or the level that OpenWrt adds. Any of these may be missing.
_CLOCK = r"(?:\S{0,14}\d{1,2}:\d\d:\d\d\S{0,18}|\d{9,11}[.,]\d{3,9})"
_STAMP = rf"(?:[^\s:]{{1,14}} {{1,3}}){{0,4}}{_CLOCK}"
_HOST = r"\S{0,254}[^\s:\]] "
_SYSLOG = re.compile(
    rf"(?:{_STAMP}(?: [AP]M)? {{1,2}}(?:{_HOST}){{0,3}}|(?:{_HOST})?)kernel(?:\[\d{{1,10}}\])?: ?(.*)", re.DOTALL
)
_DATED = rf"(?:(?:[^\s:]{{1,14}} {{1,3}}){{1,4}}{_CLOCK}|\d{{4}}-\d\d-\d\dT{_CLOCK}|\d{{9,11}}[.,]\d{{3,9}})"
_PROGRAM = re.compile(rf"{_DATED} {{1,2}}(?:{_HOST}){{1,3}}[\w./@()-]{{0,63}}[\w)](?:\[\d{{1,10}}\])?: ")
"""Somebody else's line in a syslog, which has a date."""
_RFC5424 = re.compile(
    r"(?:<(?P<priority>\d{1,3})>)?1 \S{1,40} \S{1,255} (?P<program>\S{1,48}) \S{1,128} \S{1,32} "
    r"(?:-|(?:\[[^\]\n]{1,400}\]){1,4}) ?\ufeff?(?P<text>.*)",
    re.DOTALL,
)
_TALOS = re.compile(
    r" ?(?:\S{1,255}: {1,4})?(?P<facility>\w{3,8}): {1,8}(?P<level>\w{3,9}): \[[^\]\n]{10,40}\]: ?(?P<text>.*)",
    re.DOTALL,
)
_EXTENDED = re.compile(r"(?P<facility>\w{3,8}) {0,6}:(?P<level>\w{3,9}) {0,3}: ?(?P<text>.*)", re.DOTALL)
_LOGCAT = re.compile(
    r"(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d\.\d{3,6} {1,6}(?:[a-z]\w{0,15} {1,6})?(?P<pid>\d{1,7}) {1,6}\d{1,7} "
    r"(?P<level>[VDIWEF]) (?P<tag>[^:\n]{0,120}): ?(?P<text>.*)",
    re.DOTALL,
)
_LOGCAT_BRIEF = re.compile(
    r"(?:\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} )?(?P<level>[VDIWEF])/(?P<tag>[^(\n]{0,64})\( {0,6}(?P<pid>\d{1,7})\): ?"
    r"(?P<text>.*)",
    re.DOTALL,
)
# dmesg -T and -H, and the stamps of terminal programs.
_BRACKET = re.compile(
    r"\[(?P<stamp>(?=[^\]\n]{0,48}?(?<![\d:])\d{1,2}:\d\d(?!\d))[^\]\n<>]{4,60}"
    r"| {0,12}[+<] {0,12}\d{1,10}[.,]\d{1,9}>?)\]:? ?(?P<text>.*)",
    re.DOTALL,
)
_ISO = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[\d.,]{0,10}(?: ?Z|[+-]\d\d:?\d\d)?"
_STAMPED = re.compile(rf"(?:(?P<iso>{_ISO})|\d{{1,2}}:\d\d:\d\d(?:[.,]\d{{1,9}})?):? (?P<text>.*)", re.DOTALL)
_DMESG_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{6}[+-]")
_LEVEL_LETTERS = {"V": "debug", "D": "debug", "I": "info", "W": "warn", "E": "err", "F": "crit"}


def _respelled(found: re.Match[str]) -> str:
    return "\t" if found["tab"] else ""


def _read_pasted_line(line: str) -> list[Record]:
    """Read the records of a line of a pasted log."""
    head = line[:1]
    if head in ">|":
        quote = _QUOTE.match(line)
        line = line[quote.end() :] if quote else line
        # A row of a table ends as it begins.
        line = line.removesuffix("|").rstrip() if head == "|" else line
    found = _claimed(line)
    if found is None and head in " \t":
        # An indented block, as code is quoted in Markdown and mail.
        found = _claimed(line.lstrip())
    return [found] if found else _read_within(line)


def _claimed(line: str, depth: int = 0) -> Record | None:
    """Read the record of a line that begins in one of the ways to name the kernel or a program; None for any other."""
    head = line[:1]
    if head in "<[":
        console = _CONSOLE.match(line) or _ODD_CONSOLE.match(line)
        if console:
            return _console(console)
    timed = _ANY_CLOCK.search(line, 0, _LONGEST_STAMP) is not None
    if not timed and ":" not in line and "/" not in line and head != "<":
        return None
    for needle, has_time, pattern, read in _FORMATS:
        if (timed or not has_time) and needle in line:
            found = pattern.match(line)
            record = read(found, depth) if found else None
            if record is not None:
                return record
    return None


def _inner(text: str, depth: int) -> Record | None:
    """Read the kernel's own prefix, or another, behind the one that a collector put before it."""
    text = text.lstrip(" |")
    return _claimed(text, depth + 1) if depth < 3 and text[:1] in _BEGINS else None


_BEGINS = frozenset("<[0123456789")


def _of_kernel(text: str, depth: int, level: str | None = None) -> Record:
    inner = _inner(text, depth)
    if inner is None:
        return Record(None, level, _clean(text), None, 0)
    return inner._replace(level=inner.level or level, facility=inner.facility or 0)


def _read_syslog(found: re.Match[str], depth: int) -> Record:
    return _of_kernel(found[1], depth)


def _read_program(found: re.Match[str], depth: int) -> Record | None:
    # dmesg's own times have no host behind them, and what follows them may look like one: `usb 1-1: text`.
    return None if _DMESG_ISO.match(found.string) else Record(None, None, _clean(found.string), None, None)


def _read_rfc5424(found: re.Match[str], depth: int) -> Record | None:
    priority = found["priority"]
    if found["program"] == "kernel" or (priority and int(priority) < 8):
        return _of_kernel(found["text"], depth, LEVELS[int(priority) & 7] if priority else None)
    return _with_priority(priority, _clean(found["text"])) if priority else None


def _read_priority(found: re.Match[str], depth: int) -> Record:
    record = _with_priority(found[1], _clean(found[2]))
    inner = _claimed(found[2], depth + 1) if depth < 3 and not record.facility else None
    if inner is None or inner.facility:
        return record
    return inner._replace(level=inner.level or record.level, facility=0)


def _read_named(found: re.Match[str], depth: int) -> Record | None:
    """Read facility and level by name: dmesg -x, Talos."""
    level = _LEVEL_NAMES.get(found["level"])
    if found["facility"] not in FACILITIES or level is None:
        return None
    facility = FACILITIES.index(found["facility"])
    inner = _inner(found["text"], depth)
    if inner is None:
        return Record(None, level, _clean(found["text"]), None, facility)
    return inner._replace(level=level, facility=facility)


def _read_logcat(found: re.Match[str], depth: int) -> Record | None:
    """Read Android's log. It takes what stands before the first colon of a kernel's line for the name of a program."""
    if found["pid"] != "0":
        return Record(None, None, _clean(found.string), None, None)
    tag, text = found["tag"].rstrip(), found["text"]
    whole = text if tag in ("", "kernel") else f"{tag}: {text}".rstrip()
    return _of_kernel(whole, depth, _LEVEL_LETTERS[found["level"]])


def _read_bracket(found: re.Match[str], depth: int) -> Record | None:
    inner = _inner(found["text"], depth)
    if inner:
        return inner
    stamp = found["stamp"]
    # A date with names of its day or month, or the seconds since the last line, is dmesg's; others may be a terminal's.
    spelled = stamp.lstrip()[:1] in "+<" or any(letter.isalpha() and letter not in "TZ" for letter in stamp)
    return Record(None, None, _clean(found["text"]), None, 0 if spelled else None)


def _read_stamped(found: re.Match[str], depth: int) -> Record | None:
    """Read dmesg --time-format iso, or a collector's stamp before a console line."""
    inner = _inner(found["text"], depth)
    return inner or Record(None, None, _clean(found["text"]), None, 0 if found["iso"] else None)


_LEVEL_NAMES = {
    **{name: name for name in LEVELS},
    **{"emergency": "emerg", "critical": "crit", "error": "err", "warning": "warn"},
}
_LONGEST_STAMP = 120
_ANY_CLOCK = re.compile(r"\d[:.]\d\d|[+<] {0,12}\d")
_FORMATS: tuple[tuple[str, bool, re.Pattern[str], Callable[[re.Match[str], int], Record | None]], ...] = (
    ("kernel", False, _SYSLOG, _read_syslog),
    (" - ", True, _RFC5424, _read_rfc5424),
    ("]: ", True, _TALOS, _read_named),
    (":", False, _EXTENDED, _read_named),
    (":", True, _LOGCAT, _read_logcat),
    ("/", False, _LOGCAT_BRIEF, _read_logcat),
    (":", True, _PROGRAM, _read_program),
    ("<", False, _BARE, _read_priority),
    ("[", True, _BRACKET, _read_bracket),
    (":", True, _STAMPED, _read_stamped),
)
"""What a line of that format contains, whether a time is in it, its pattern, and what is read from it.

The first that fits counts.
"""


def _unglued(line: str) -> Iterator[str]:
    """Split off the records that were glued into one line, each with its prefix."""
    begins = [0]
    if line.count(" kernel: ") > 1:
        begins += _syslog_begins(line)
    elif "]" in line or "," in line:
        found = _CONSOLE.match(line) or _ODD_CONSOLE.match(line)
        # What a program writes may contain anything, also what looks like another record.
        if found is None or found[1] is None or int(found[1]) < 8:
            places = ([found.start() for found in glued.finditer(line)] for glued in _GLUED)
            begins += next((several[1:] for several in places if len(several) > 1), [])
    for begin, end in zip(begins, [*begins[1:], len(line)], strict=True):
        # An escaped end of a line, as programs' own formats have it, was one.
        yield _ESCAPED_END.sub("", line[begin:end])


_GLUED = (
    _WITHIN,
    re.compile(r"\[(?=[^\W\d_]{1,12}[. ])[^\[\]\n]{6,40}\d{1,2}:\d\d:\d\d[^\[\]\n]{0,12}\] "),
    re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{6}[+-]\d\d:\d\d(?: |$)"),
)
"""How a record begins, where several may be in one line: the kernel's own way, and dmesg's with dates."""
_ESCAPED_END = re.compile(r"(?:\\[nr]|\s){1,8}$")


def _syslog_begins(line: str) -> Iterator[int]:
    """Find where further records begin in a line: with as many words before `kernel: ` as the first one has."""
    at = line.find(" kernel: ")
    words = len(line[:at].split())
    while (at := line.find(" kernel: ", at + 1)) >= 0:
        before = list(_WORD.finditer(line, max(0, at - 200), at))[-words:]
        if len(before) == words and _CLOCK_ONLY.search(line, before[0].start(), at):
            yield before[0].start()


_WORD = re.compile(r"\S+")
_CLOCK_ONLY = re.compile(r"\d{1,2}:\d\d:\d\d|\d{9,11}\.\d{6}|\[ {0,12}\d{1,10}\.\d{6}\]")


def _from_fields(fields: dict[str, str], text: str) -> list[Record]:
    """Read the record of one line of a message that came with fields of the journal's, or of another collector's."""
    transport, program = fields.get("_TRANSPORT"), fields.get("SYSLOG_IDENTIFIER")
    if transport is None and program is None and "pri" not in fields:
        return _read_pasted_line(text)
    number = fields.get(
        "SYSLOG_FACILITY", "0" if transport in ("kernel", None) and program in ("kernel", None) else "3"
    )
    level = fields.get("PRIORITY", fields.get("pri", ""))
    facility = fields.get("fac", "kern")
    micro, seconds = fields.get("_SOURCE_MONOTONIC_TIMESTAMP", ""), fields.get("time", "").strip()
    time = int(micro) / 1e6 if _SHORT.fullmatch(micro) else float(seconds) if _SECONDS.fullmatch(seconds) else None
    named = _LEVEL_NAMES.get(level, LEVELS[int(level) & 7] if _SHORT.fullmatch(level) else None)
    of = int(number) if _SHORT.fullmatch(number) else 3
    if facility in FACILITIES:
        of = of or FACILITIES.index(facility)
    record = Record(time, named, _clean(text), None, of)
    if of:
        return [record]
    console = _CONSOLE.match(text) if text[:1] in "<[" else None
    return [_console(console)._replace(facility=0) if console else record]


_SHORT = re.compile(r"\d{1,18}", re.ASCII)
_SECONDS = re.compile(r"\d{1,10}\.\d{1,9}", re.ASCII)
