"""What went wrong, out of the kernel's log: one finding for one bug (admin-guide/bug-hunting.rst)."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable
from dataclasses import replace

from kmlab.kernel.crash.crash import Crash, unexpected_reboot
from kmlab.kernel.crash.dedup import belongs, merged
from kmlab.kernel.crash.parser.conclusion import conclude, find, is_of_kmemleak_s_messages
from kmlab.kernel.crash.parser.panic_causes import may_cause
from kmlab.kernel.crash.parser.report import Report
from kmlab.kernel.crash.patterns import (
    CUT_HERE,
    Header,
    Message,
    find_dump,
    find_header,
    find_message,
    find_orphan,
    is_plain,
)
from kmlab.kernel.log.records import Record

LINGER = 10.0
"""Seconds of the kernel's clock that a finished report waits for the panic that may follow it."""
LINGER_RECORDS = 500
"""The same in records, for a log without times or a flood."""
MAX_CRASHES = 100
"""Findings that are kept of one log."""
_MAX_CONTEXTS = 64


def find_crashes(
    records: Iterable[Record], own_modules: frozenset[str] = frozenset(), booted: bool = False
) -> list[Crash]:
    """Every bug that these records report, in the order of their first lines.

    `own_modules` are the modules whose frames are looked for first. `booted`: the kernel was already up when
    the log began, so that any boot in it is a reboot.
    """
    scanner = Scanner(own_modules, booted)
    scanner.feed(records)
    scanner.close()
    return scanner.crashes


class Scanner:
    """find_crashes for a log that is still being written."""

    def __init__(self, own_modules: frozenset[str] = frozenset(), booted: bool = False) -> None:
        self.suspect = False
        """Some report has begun."""
        self.panicked = False
        """The kernel said that it panicked, and more of that than a module would quote."""
        self.benign: list[Crash] = []
        """Reports that are no bug of a module's, but of the kernel's own tools."""
        self.panic_complete = False
        """It also said the last that it has to say."""
        self._own = own_modules
        self._contexts: dict[str, _Context] = {}
        self._waiting: list[Report] = []
        self._found: list[tuple[int, Crash]] = []
        self._boot = 0
        """Where in `_found` the findings of this boot begin."""
        self._up = self._whole = booted
        self._leaving = False
        """This boot has ended in a way that the log explains: a panic, or a shutdown."""
        self._seen = 0
        self._banner = 0
        """The record that this boot began with."""
        self._answering: dict[str, int] = {}
        """Who shows a stack because a watchdog asked, and since which record, where no hang led to that."""
        self._orphan: Report | None = None
        """A stack whose first line was lost: a finding if there is no other."""
        self._asked = False
        """Somebody asked for the stacks of tasks."""
        self._foreign: set[str] = set()
        """Modules from outside of the kernel's tree that the log names."""
        self._time: float | None = None
        self._alive = False

    @property
    def crashes(self) -> list[Crash]:
        """All that was found so far; a later line may still make one fatal, or give it a better name."""
        return [crash for _, crash in sorted(self._found, key=lambda found: found[0])]

    def feed(self, records: Iterable[Record]) -> list[Crash]:
        """Return the findings that became certain with these records.

        A report waits LINGER for what may follow it: a watcher in a hurry looks at `suspect` and `panicked`.
        """
        fresh: list[Crash] = []
        for record in records:
            time, _, text, caller, facility = record
            # What a program wrote to the log, and what firmware or a login prompt said, is never a finding.
            if facility or (facility is None and time is None and caller is None):
                if text.startswith("** ") and facility is None:
                    self._lose(text)
                elif facility and self._contexts:
                    self._doubt()
                continue
            self._seen += 1
            if time is not None:
                self._time = time
                self._up = self._up or time > _UP
            else:
                self._up = self._up or self._seen - self._banner > _UP_RECORDS
            if (self._waiting and self._is_old(self._waiting[0])) or (self._contexts and self._seen % 16 == 0):
                fresh += self._settle(everything=False)
            fresh += self._take(record)
        return fresh

    def close(self, alive: bool = False) -> list[Crash]:
        """Return the findings that were still being read; the log has ended.

        `alive`: the kernel is known to go on, so that it has not panicked, whatever a line says.
        """
        self._alive = alive
        for context in list(self._contexts.values()):
            self._shut(context)
        self._contexts.clear()
        fresh = self._settle(everything=True)
        orphan = None if self._found or self._orphan is None else conclude(self._orphan, self._own)
        if orphan and self._orphan and self._tell(self._orphan.order, orphan):
            fresh.append(orphan)
        return fresh

    def _take(self, record: Record) -> list[Crash]:
        text = record.text
        if text.startswith(_TURNS):
            return self._turn(record)
        if text.startswith("** "):
            self._lose(text)
        context = self._contexts.get(record.caller or "")
        plain = is_plain(text)
        if "taint" in text and (tainter := _TAINTER.match(text)):
            self._foreign.add(tainter[1].replace("-", "_"))
        header = None if plain else find_header(text, record.level)
        if header:
            self._head(context, record, header)
        elif context:
            self._go_on(context, record, plain)
        elif plain:
            if CUT_HERE in text:
                self._enter(record.caller or "").note(record, self._seen)
            elif text.startswith("NMI backtrace for cpu"):
                self._answer(record)
            else:
                self._adopt(record)
        elif find_message(text):
            self._enter(record.caller or "").note(record, self._seen)
        else:
            self._dump(None, record)
        if self.panicked and text.startswith(("---[ end Kernel panic", "Rebooting in ")):
            self.panic_complete = True
        return []

    def _head(self, context: _Context | None, record: Record, header: Header) -> None:
        """Read a first line."""
        self.suspect = self.suspect or not header.shape.traits & {"provisional"}
        if "line" in header.shape.traits and not (
            context and context.report and context.report.goes_on(header, record.text)
        ):
            # It is whole, and says nothing of what was being told when it came.
            self._wait(Report(record.caller or "", header, record, self._seen))
            return
        context = context or self._enter(record.caller or "")
        if header.shape.kind == "panic":
            self._panic(context, record, header)
        else:
            self._begin(context, record, header)

    def _answer(self, record: Record) -> None:
        """Another CPU answers the watchdog that found it, in a context of its own."""
        asked = [r for r in self._reports() if r.subject.kind == "hang" and not r.progress.fatal]
        if asked:
            self._enter(record.caller or "").report = asked[-1]
            asked[-1].add(record, self._seen)
        elif "skipped" not in record.text and len(self._answering) < _MAX_CONTEXTS:
            self._answering[record.caller or ""] = self._seen

    def _dump(self, context: _Context | None, record: Record) -> None:
        """Read a stack that no first line led to."""
        header = find_dump(record.text)
        if header and self._seen - self._answering.pop(record.caller or "", -_STALE) < _STALE:
            return
        if header and not self.panicked:  # a kernel that has panicked stops its other CPUs, and shows where they were
            context = context or self._enter(record.caller or "")
            context.report = context.lead(Report(context.key, header, record, self._seen), self._seen)

    def _adopt(self, record: Record) -> None:
        """Read a line from the middle of a report, if that is what the log has."""
        if record.text.startswith(("sysrq: ", "SysRq : ")):
            self._asked = True
        elif self._orphan is None and not (self._whole or self._asked or self.suspect or self._found):
            header = find_orphan(record.text, begins=self._seen <= _BEGIN)
            if header:
                context = self._enter(record.caller or "")
                self._orphan = context.report = Report(context.key, header, record, self._seen)
                context.report.adopt(record)

    def _go_on(self, context: _Context, record: Record, plain: bool) -> None:
        report = context.report
        if report is None:
            if not plain and find_dump(record.text):
                self._dump(context, record)
            else:
                context.note(record, self._seen)
        elif CUT_HERE in record.text and not report.dying and not report.progress.fatal:
            if not report.untraced_slab:
                self._leave(context)
            context.note(record, self._seen)
        else:
            if not plain and find_message(record.text):
                context.note(record, self._seen)
            report.add(record, self._seen)
            if report.progress.fatal:
                self._weigh(report)
            if report.progress.done:
                self._shut(context)

    def _begin(self, context: _Context, record: Record, header: Header) -> None:
        report = context.report
        if report is not None:
            # `kernel BUG at` goes on with `invalid opcode:`, and a dying CPU stumbles more than once.
            if report.dying or report.progress.fatal:
                report.add(record, self._seen)
                report.subject.refine(header)
                return
            if report.goes_on(header, record.text):
                context.forget()
                report.go_on(header, record, self._seen)
                return
            self._leave(context)
        context.report = context.lead(Report(context.key, header, record, self._seen), self._seen)

    def _leave(self, context: _Context) -> None:
        """Another report begins: what was no report yet is what was said before it."""
        report = context.report
        if report is not None and report.provisional:
            context.report = None
            context.remember(report.text.lines)
        else:
            self._shut(context)

    def _panic(self, context: _Context, record: Record, header: Header) -> None:
        self._leaving = True
        if context.report is not None and context.report.progress.fatal:
            context.report.add(record, self._seen)
            return
        causes = [r for r in (*self._waiting, *self._reports()) if may_cause(r, record.text)]
        if not causes:
            self._leave(context)
            context.report = context.lead(Report(context.key, header, record, self._seen), self._seen)
            return
        cause = max(causes, key=lambda r: (r.key == context.key, r.progress.last_seen))
        if context.report is not cause:
            self._shut(context)
        if cause in self._waiting:
            self._waiting.remove(cause)
        for other in self._contexts.values():
            if other.report is cause:
                other.report = None
        # From here on its lines come from the context that panics.
        context.report = cause
        cause.panics(record, self._seen)
        self.panicked = True

    def _turn(self, record: Record) -> list[Crash]:
        """Note that a boot begins, or that the end of one is announced."""
        if not record.text.startswith("Linux version "):
            self._leaving = True
            return []
        # The clock does not run yet when the banner is printed. A console that is registered late prints it
        # again: only a kernel that was up can reboot.
        if not self._up or (record.time is not None and record.time > _UP):
            self._banner = self._seen
            return []
        dying = {r.order for r in (*self._waiting, *self._reports()) if r.deadly}
        fresh = self.close()
        if not self._leaving:
            self.suspect = True
            last = next((i for i, (order, _) in enumerate(self._found) if order in dying), None)
            if last is not None:
                order, crash = self._found[last]
                self._found[last] = (order, replace(crash, kind="panic", fatal=True))
            elif not dying and self._tell(self._seen, crash := unexpected_reboot(record)):
                fresh.append(crash)
        self._boot, self._banner = len(self._found), self._seen
        self._up = self._leaving = False
        return fresh

    def _doubt(self) -> None:
        """Note that a program speaks: the kernel that has panicked lives on."""
        for report in self._reports():
            if report.subject.kind == "panic":
                report.progress.pass_by()
                self._weigh(report)

    def _weigh(self, report: Report) -> None:
        """Whether the kernel has panicked, after a line behind its saying so."""
        self.panicked = (self.panicked or report.panicking) and not report.refuted
        self._leaving = self._leaving and not report.refuted

    def _lose(self, text: str) -> None:
        if "printk messages dropped" in text:
            for report in self._reports():
                report.progress.lost = True

    def _reports(self) -> list[Report]:
        return list(dict.fromkeys(c.report for c in self._contexts.values() if c.report))

    def _enter(self, key: str) -> _Context:
        if len(self._contexts) >= _MAX_CONTEXTS:
            oldest = min(self._contexts.values(), key=lambda c: c.seen)
            self._shut(oldest)
            self._contexts.pop(oldest.key, None)
        context = self._contexts[key] = _Context(key, self._seen)
        return context

    def _shut(self, context: _Context) -> None:
        report, context.report = context.report, None
        if report is not None:
            for other in self._contexts.values():
                if other.report is report:
                    other.report = None
            self._wait(report)

    def _wait(self, report: Report) -> None:
        """Keep a whole report for LINGER, in the order of the first lines."""
        bisect.insort(self._waiting, report, key=lambda other: other.order)

    def _settle(self, everything: bool) -> list[Crash]:
        """Close what has gone silent, and tell what has waited long enough."""
        if not everything and self._seen % 16 == 0:
            for context in list(self._contexts.values()):
                report = context.report
                if report and self._is_old(report):
                    self._shut(context)
                if context.report is None and self._seen - context.seen > _STALE:
                    del self._contexts[context.key]
        fresh: list[Crash] = []
        while self._waiting and (everything or self._is_old(self._waiting[0])):
            report = self._waiting.pop(0)
            report.progress.passed = report.progress.passed or self._alive or self._is_old(report)
            if report is self._orphan:
                continue
            self._foreign |= report.foreign
            if is_of_kmemleak_s_messages(report) and len(self.benign) < MAX_CRASHES:
                self.benign.append(find(report, self._own))
            crash = conclude(report, self._own, frozenset(self._foreign))
            if crash and self._tell(report.order, crash):
                fresh.append(crash)
        return fresh

    def _is_old(self, report: Report) -> bool:
        progress = report.progress
        if self._seen - progress.last_seen > LINGER_RECORDS:
            return True
        return self._time is not None and progress.last_time is not None and self._time > progress.last_time + LINGER

    def _tell(self, order: int, crash: Crash) -> bool:
        """Keep a finding, unless it is one that is known already under another name."""
        for index, (first, known) in enumerate(self._found):
            same_boot = index >= self._boot
            if same_boot and order < first and belongs(crash, known):
                # A report that ended in a panic comes last, after what its own dying task stumbled over.
                self._found[index] = (order, merged(crash, known))
                return False
            if known.fingerprint == crash.fingerprint or (same_boot and belongs(known, crash)):
                self._found[index] = (first, merged(known, crash))
                return False
        if len(self._found) >= MAX_CRASHES:
            return False
        self._found.append((order, crash))
        return True


class _Context:
    """One task or CPU that is talking: what it said before a report, and the report."""

    def __init__(self, key: str, seen: int) -> None:
        self.key = key
        self.seen = seen
        self.report: Report | None = None
        self._before: list[str] = []
        self._cut = False
        self._message: Message | None = None
        self._said: str | None = None

    def note(self, record: Record, seen: int) -> None:
        """Remember a line that may belong to the report that follows."""
        text = record.text
        message = find_message(text)
        if CUT_HERE in text:
            if seen - self.seen > _STALE:
                self.forget()
            self._cut = True
        elif message:
            self._message = message
        elif self._said is None and (self._cut or (self._message and "explained" in self._message.traits)):
            self._said = text
        elif not self._before:
            return
        self.remember([text])
        if self._cut or message:
            self.seen = seen

    def remember(self, lines: list[str]) -> None:
        """Keep lines for the report that follows."""
        self._before = [*self._before, *lines][-8:]

    def lead(self, report: Report, seen: int) -> Report:
        """Hand what was said before to the report that it led to."""
        if seen - self.seen <= _STALE:
            report.led_by(self._before, self._message, self._said)
        self.forget()
        self.seen = seen
        return report

    def forget(self) -> None:
        self._before, self._cut, self._message, self._said = [], False, None, None


_UP = 0.5
"""Seconds after which a kernel that is heard again from the start has rebooted."""
_UP_RECORDS = 100
"""The same in records, for a log without times."""
_STALE = 24
_BEGIN = 40
"""Records at the begin of a log that may be the end of a trace."""
_TAINTER = re.compile(
    r"([\w-]{1,64}): (?:loading out-of-tree module taints|module verification failed|module license .{1,64} taints)"
)
"""A module from outside of the kernel's tree is loaded (check_modinfo())."""
_TURNS = (
    "Linux version ",
    "reboot: ",
    "sysrq: Resetting",
    "kexec_core: Starting new kernel",
    "Starting crashdump kernel",
)
