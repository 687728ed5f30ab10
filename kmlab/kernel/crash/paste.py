"""Find out how a saved log was pasted: what stands before its lines, which way it runs, which lines were not read.

`klog` knows the formats of programs. Here a log is looked at as a whole: lines that only a kernel's report has (`Call
Trace:`, `Modules linked in:`) begin behind whatever a vendor, a mailer or a person put before them, so that the same
beginning before several of them is a prefix.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kmlab.kernel.crash.patterns import Header, find_header
from kmlab.kernel.log.records import Record

_NEEDLES = (
    *("PID: ", "Call ", "BUG", "Modules linked", "[ end ", "[ cut", "Oops", "RIP", "nable to ", "panic", "WARNING"),
    *("INFO: ", "UBSAN", "protection fault", "Hardware name", "unreferenced", "Busy inodes", "unregister_netdevice"),
)


class Layout(NamedTuple):
    """How the lines of a log are to be read."""

    prefixes: tuple[re.Pattern[str], ...] = ()
    """What stands before the kernel's text, beside the formats that `klog` knows; the first that fits is cut off."""
    bare: bool = False
    """Lines without any prefix are the kernel's, though others have one."""

    def apply(self, records: Iterable[Record]) -> Iterator[Record]:
        """Give the records with what stands before their text cut off."""
        for record in records:
            if not record.facility:
                for prefix in self.prefixes:
                    found = prefix.match(record.text)
                    if found:
                        text = record.text[found.end() :]
                        yield record._replace(text=text, facility=record.facility if record.from_kernel else 0)
                        break
                else:
                    yield record._replace(facility=0) if self.bare and not record.prefixed else record
                continue
            yield record


class Unread(NamedTuple):
    """Lines of a kernel's that could not be read."""

    lines: int
    first: str
    """The first of them."""
    report: bool
    """There are several kinds of them, as in a report, and not just a first line that somebody quotes."""


class Survey:
    """Hears the records of a log as they were read, and knows afterwards what was wrong with the reading."""

    def __init__(self) -> None:
        self._unread = 0
        self._first = ""
        self._kinds: set[str] = set()
        self._levels = self._levelless = False
        self._before: dict[str, list[str]] = {}
        """What stood before a line that only a kernel has, by its form."""
        self._bare: set[str] = set()
        """The kinds of such lines that had nothing before them, where others have a prefix."""

    def hear(self, records: Iterable[Record]) -> None:
        """Look at records of a part of the log in which something of a report stands."""
        for record in records:
            text = record.text
            self._levels |= record.prefixed
            self._levelless |= record.prefixed and record.level is None
            if record.facility or not (_SPOKEN.search(text) or ("+0x" in text and not record.from_kernel)):
                continue
            found = _ANCHOR.search(text)
            start, kind = (found.start(), found.lastgroup or "") if found else (_header_within(text), "header")
            if start is not None and start > 0:
                self._note_prefix(text[:start])
            elif start == 0 and not record.from_kernel:
                self._bare.add(kind)
            if self._is_unread(record, start):
                self._unread += 1
                self._first = self._first or text
                self._kinds.add(kind if start is not None else "")

    def _note_prefix(self, before: str) -> None:
        if len(before) > _LONGEST_PREFIX or len(self._before) >= _MOST_FORMS:
            return
        several = self._before.setdefault(_form(before), [])
        if len(several) < _MOST_EXAMPLES:
            several.append(before)

    def _is_unread(self, record: Record, start: int | None) -> bool:
        """Tell whether the kernel said this, and it was taken for somebody else's or begins with something unknown.

        `start` is where its own words begin, if they are of a report.
        """
        if not record.from_kernel:
            return start is not None or _FRAME.search(record.text) is not None
        return bool(start) and _header_within(record.text) is not None

    @property
    def unread(self) -> Unread | None:
        """The lines that were not read, if there are any."""
        if self._levels and not self._levelless and len(self._kinds) < 3:
            # The console prints a level before each of the kernel's lines: a line or two without is a program's.
            return None
        return Unread(self._unread, self._first, len(self._kinds) > 2) if self._unread else None

    @property
    def layout(self) -> Layout | None:
        """How the log could be read better; None where nothing speaks for another way."""
        forms = sorted(self._before.values(), key=len, reverse=True)[:_MOST_PREFIXES]
        prefixes = tuple(_pattern(examples) for examples in forms if len(examples) > 1 or examples[0].isspace())
        bare = len(self._bare) > 2
        return Layout(prefixes, bare) if prefixes or bare else None


def is_suspicious(data: bytes) -> bool:
    """Whether a report, or a part of one, is probably in these bytes. Cheap, so that a flood need not be surveyed."""
    return any(needle in data for needle in _NEEDLE_BYTES)


def _header_within(text: str) -> int | None:
    """Find where in the line a report's first line begins; None where there is none."""
    if find_header(text) is not None:
        return 0
    for found in itertools.islice(_HEADER_WORD.finditer(text), _MOST_WORDS):
        header = find_header(text[found.start() :])
        if header is not None and header.shape.class_ != "other":
            return found.start()
    return None


_LONGEST_PREFIX = 160
_MOST_WORDS = 16
"""Places in one line where a report may begin: who repeats such a word more often is no kernel."""
_MOST_FORMS = 64
_MOST_EXAMPLES = 50
_MOST_PREFIXES = 4

_ANCHOR = re.compile(
    r"(?P<cpu>CPU: \d{1,5} (?:UID: \d{1,10} )?PID: \d{1,9} Comm: )|(?P<trace>Call [Tt]race:\s{0,80}$)"
    r"|(?P<linked>Modules linked in: )|(?P<rip>RIP: 0010:)|(?P<end>---\[ end trace [0-9a-f]{1,16} \])"
    r"|(?P<cut>-{12}\[ cut here \])|(?P<oops>Oops: (?:Oops: )?[0-9a-f]{4,8} \[#|Internal error: Oops)"
    r"|(?P<bug>BUG: (?:kernel NULL pointer|unable to handle)|Unable to handle kernel |[kK]ernel BUG at \S)"
    r"|(?P<panic>Kernel panic - not syncing)|(?P<checker>BUG: K(?:[ACM]SAN|FENCE): )|(?P<machine>Hardware name: )"
    r"|(?P<warning>WARNING: CPU: \d{1,5} PID: \d)|(?P<hung>INFO: task \S{1,64}:\d{1,9} blocked for)"
    r"|(?P<lockdep>WARNING: possible (?:circular|recursive) locking)"
)
"""What begins a line of a kernel's report and no other line."""
_FRAME = re.compile(r"[A-Za-z_][\w.]{2,120}\+0x[0-9a-f]{1,8}/0x[0-9a-f]{1,8}")
_HEADER_WORD = re.compile(
    r"(?:watchdog: |rcu: )?(?:BUG|INFO): |BUG [\w.:-]|WARNING: |UBSAN: |Oops|Internal error: |Unable to handle "
    r"|general protection fault|[kK]ernel BUG at |Kernel panic - |watchdog: |unreferenced object |kmemleak: |VFS: Busy"
    r"|unregister_netdevice: "
)
_SPOKEN = re.compile("|".join(map(re.escape, _NEEDLES)))
_NEEDLE_BYTES = (b"+0x", b"PID: ", b"BUG", b" [#", b"unreferenced object", b"Kernel panic")


# --- a prefix, learned ---------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\d+|[^\W\d_]+|\s+|.", re.DOTALL)


def _form(prefix: str) -> str:
    """Reduce a prefix to what those of one kind have in common: the kinds of their parts."""
    return "".join(_kind(token) for token in _TOKEN.findall(prefix))


def _kind(token: str) -> str:
    if token.isdigit():
        return "9"
    if token[0].isalpha():
        return "a"
    return " " if token.isspace() else token


def _pattern(examples: list[str]) -> re.Pattern[str]:
    """Make a pattern for prefixes of one form. Words that are the same everywhere are taken as they are."""
    parts = []
    columns = list(zip(*(_TOKEN.findall(example) for example in examples), strict=True))
    for number, column in enumerate(columns):
        first = column[0]
        if first.isdigit():
            parts.append(r"\d{1,20}")
        elif first.isspace():
            # The kernel indents some lines of its own: only so many blanks as stand before all belong to the prefix.
            least = min(map(len, column))
            parts.append(rf"\s{{{least}}}" if number == len(columns) - 1 else r"\s{0,24}")
        elif first[0].isalpha() and len(set(column)) > 1:
            parts.append(r"[^\W\d_]{1,40}")
        else:
            parts.append(re.escape(first))
    return re.compile("".join(parts))


# --- which way it runs ---------------------------------------------------------------------------------------------


def runs_backwards(head: bytes) -> bool:
    """Tell whether the newest line comes first, as `journalctl -r` has it; from a log's first bytes.

    The times of its lines tell, and where all are of one second, what comes first in a report.
    """
    later = earlier = 0
    last: tuple[int, float] | None = None
    for line in head.splitlines():
        time = _time_of(line)
        if time is None:
            continue
        if last is not None and last[0] == time[0]:
            later += time[1] > last[1]
            earlier += time[1] < last[1]
        last = time
    order = _report_order(head)
    if earlier > 3 * later:
        return order < 0 or (order == 0 and earlier > 2)
    return order < 0 and not later


def _time_of(line: bytes) -> tuple[int, float] | None:
    """Find out which clock a line has, and what it says; the date is left out, as it may be spelled in any language."""
    since = _SINCE_BOOT.match(line)
    if since:
        return 1, float(since[1])
    clock = _DAY_CLOCK.match(line)
    if clock:
        fraction = float(b"0." + clock[4]) if clock[4] else 0.0
        return 2, int(clock[1]) * 3600 + int(clock[2]) * 60 + int(clock[3]) + fraction
    field = _FIELD_CLOCK.match(line)
    return (3, float(field[1])) if field else None


def _report_order(head: bytes) -> int:
    """Above 0 where reports begin with their first line, below 0 where with their last, 0 where there is none."""
    order = 0
    for pair in _PAIRS:
        marks = list(re.finditer(b"(%s)|(%s)" % (pair.begins, pair.ends), head))
        # A trace before the first report, or after the last one, leaves both ends alike and says nothing.
        if not marks or (marks[0][1] is None) == (marks[-1][1] is None):
            continue
        if marks[0][1] is not None:
            order += 1
        elif sum(mark[1] is None for mark in marks) > 1 or pair.is_turned(marks, head):
            order -= 1
    return order


class _Pair(NamedTuple):
    """What comes first in a report, and what after it."""

    begins: bytes
    ends: bytes
    turned: bytes = b""
    """What stands between the two in a report that runs backwards."""
    cut: bytes = b"(?!)"
    """What stands between them only where the report before was cut at its begin, and runs forwards."""

    def is_turned(self, marks: Sequence[re.Match[bytes]], head: bytes) -> bool:
        """Whether the one end is of the same report as the begin behind it, not of one before that."""
        end = max(mark.end() for mark in marks if mark[1] is None)
        between = head[end : min(mark.start() for mark in marks if mark[1] is not None)]
        return bool(re.search(self.turned, between)) and not re.search(self.cut, between)


_SINCE_BOOT = re.compile(rb"[^\[\n]{0,80}\[ {0,12}(\d{1,10}\.\d{1,9})[\]s@ ]")
_DAY_CLOCK = re.compile(rb".{0,60}?(?<![\d:])(\d{1,2}):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(?!\d)")
_FIELD_CLOCK = re.compile(rb'.{0,200}?__REALTIME_TIMESTAMP"? {0,4}[:=] {0,4}"?(\d{1,18})')
_PAIRS = (
    _Pair(rb"<TASK>", rb"</TASK>", cut=rb"Call [Tt]race:|CPU: \d"),
    _Pair(rb"CPU: \d{1,5} [^\n]{0,24}PID: \d", rb"Call [Tt]race:", cut=rb"\[ cut here|---\[ end|BUG: |WARNING: "),
    _Pair(rb"\[ cut here \]-", rb"---\[ end trace ", turned=rb"Call [Tt]race:"),
    _Pair(rb"Call [Tt]race:", rb"---\[ end trace ", cut=rb"CPU: \d"),
    _Pair(rb"Oops: (?:Oops: )?\d{4}", rb"---\[ end trace ", turned=rb"Call [Tt]race:"),
)


def turned(data: bytes) -> bytes:
    """Give a log that runs backwards with its entries in the order in which they were written."""
    if b"\n__CURSOR=" in data:
        entries = [entry + b"\n" for entry in data.split(b"\n\n")]
    else:
        entries = []
        lines = data.splitlines(keepends=True)
        stamped = sum(1 for line in lines[:200] if _time_of(line)) * 2 > len(lines[:200])
        verbose = b"\n    _TRANSPORT=" in data[: 1 << 16]
        pretty = data[:64].lstrip().startswith((b"{\n", b"{\r"))
        for line in lines:
            # The lines of one journal entry stay in their order.
            goes_on = (line[:1] in b" \t" and (verbose or (stamped and not _time_of(line)))) or (
                pretty and not line.startswith(b"{")
            )
            if goes_on and entries:
                entries[-1] += line
            else:
                entries.append(line if line.endswith(b"\n") else line + b"\n")
    return b"".join(reversed(entries))


# --- lines that belong together ------------------------------------------------------------------------------------


def is_wrapped(head: bytes) -> bool:
    """Tell whether a mailer broke the lines of a log wherever they were longer than some width; from its first bytes.

    Then each line that has no time follows one that had no room for its first word.
    """
    lines = [line.rstrip() for line in head.splitlines() if line.strip()]
    width = max(map(len, lines), default=0)
    if width > _WIDEST:
        return False
    fitting = broken = 0
    timed = [_time_of(line) is not None for line in lines]
    for (first, has_time), (second, begins) in itertools.pairwise(zip(lines, timed, strict=True)):
        if begins or not has_time:
            continue
        word = second.lstrip(b"> ").split(b" ")[0]
        broken += len(first) + 1 + len(word) > width - _QUOTE_WIDTH
        fitting += len(first) + 1 + len(word) <= width - _QUOTE_WIDTH
    return broken > 2 and broken > 9 * fitting


_QUOTE_WIDTH = 4
"""Characters that a quoted line may be longer than those that its mailer broke."""
_WIDEST = 120


class Rejoiner:
    """Joins what a mailer wrapped, or a task's name with a newline in it tore apart.

    `wrapped`: each line without a prefix is the rest of the one before.
    """

    def __init__(self, wrapped: bool = False) -> None:
        self._held: Record | None = None
        self._wrapped = wrapped

    def feed(self, records: Iterable[Record]) -> list[Record]:
        """Read the records of which it is certain that nothing follows."""
        done: list[Record] = []
        for record in records:
            held = self._held
            if held is not None:
                text = self._joined(held, record)
                if text is not None:
                    self._held = held._replace(text=text)
                    continue
                done.append(held)
                self._held = None
            if not record.facility and (self._wrapped or _may_go_on(record.text)):
                self._held = record
            else:
                done.append(record)
        return done

    def close(self) -> list[Record]:
        """Return the record that was held back."""
        held, self._held = self._held, None
        return [held] if held is not None else []

    def _joined(self, first: Record, second: Record) -> str | None:
        if self._wrapped and first.prefixed and not second.prefixed and len(first.text) < _LONGEST_JOINED:
            return f"{first.text.rstrip()} {second.text.strip()}"
        return _joined(first, second)


def _may_go_on(text: str) -> bool:
    return ("+0x" in text and not text.endswith("]")) or _TORN.search(text) is not None


_TORN = re.compile("BUG|WARNING|INFO: |RIP:|pc :|CPU: |Modules linked|nable to |Comm: |Oops|fault|rror:|invalid opcode")


def _joined(first: Record, second: Record) -> str | None:
    """Give the two as one line, if only both together are what a kernel says."""
    if second.facility or len(first.text) > _LONGEST_JOINED:
        return None
    # A wrapped line has no prefix, where the others have one; what the kernel itself broke has the same time.
    wrapped = first.prefixed and not second.prefixed
    same = (first.time, first.facility, first.caller) == (second.time, second.facility, second.caller)
    if not wrapped and not (same and not second.text.startswith((" ", "\t"))):
        return None
    space = "" if re.match(r"RIP: \d{1,4}:\s*$", first.text) else " "
    text = f"{first.text.rstrip()}{space}{second.text.strip()}"
    now = find_header(first.text)
    if _completes(now, find_header(text)):
        return text
    # A terminal breaks a line anywhere, also within a word.
    torn = first.text + second.text.strip()
    if wrapped and _completes(now, find_header(torn)):
        return torn
    bare = not first.prefixed and not second.prefixed
    if bare and _WRAPPED[0][0].search(first.text) and _WRAPPED[0][1].match(second.text):
        return text
    if not wrapped:
        return None
    if any(begin.search(first.text) and end.match(second.text) for begin, end in _WRAPPED):
        return text
    return None


def _completes(now: Header | None, joined: Header | None) -> bool:
    """Tell whether a first line says more than before."""
    if joined is None or joined.shape.class_ == "other":
        return False
    if now is None or now.shape.class_ == "other":
        return True
    return now.shape is joined.shape and now.symbol is None and joined.symbol is not None


_LONGEST_JOINED = 1000
_WRAPPED = (
    # A frame and its module; a register that says where, and where that is.
    (re.compile(r"\+0x[0-9a-f]{1,16}/0x[0-9a-f]{1,16}$"), re.compile(r"\s{0,4}\[[\w-]{1,64}\]\s{0,4}$")),
    (re.compile(r"^(?:RIP: \d{4}:|pc : ?)$"), re.compile(r"\s{0,4}[A-Za-z_][\w.]{0,127}\+0x")),
    (re.compile(r"^CPU: \d{1,5} .{0,80}Comm: "), re.compile(r".{0,80}(?:ainted|#\d)")),
    (re.compile(r"^Modules linked in:"), re.compile(r"[\w()+ -]{2,}(?:\[last unloaded: .{0,80}\])?$")),
)
"""How the first of two lines ends or begins that belong together, and how the second one does."""
