"""One report of the kernel's while it is read, line by line, from its first (kernel/panic.c, arch/*/kernel/)."""

from __future__ import annotations

from collections.abc import Sequence

from kmlab.kernel.crash.crash import foreign_modules
from kmlab.kernel.crash.parser.circumstances import Circumstances
from kmlab.kernel.crash.parser.lock_words import LockWords
from kmlab.kernel.crash.parser.named_functions import NamedFunctions, in_flight
from kmlab.kernel.crash.parser.report_progress import UNRELATED, Progress
from kmlab.kernel.crash.parser.report_text import ReportText
from kmlab.kernel.crash.parser.stacks import CHAIN, MAIN, Stacks, find_frames
from kmlab.kernel.crash.parser.subject import Subject
from kmlab.kernel.crash.parser.vocabulary import is_of_reports
from kmlab.kernel.crash.patterns import Header, Message, find_message
from kmlab.kernel.crash.stack_trace import Frame
from kmlab.kernel.log.records import Record


class Report:
    """A report that is being read: its parts, and which line tells which of them."""

    def __init__(self, key: str, header: Header, record: Record, seen: int) -> None:
        self.key = key
        self.order = seen
        self.leveled = record.level is not None
        """The log tells the level of a line."""
        self.subject = Subject(header)
        self.text = ReportText(record.text)
        self.progress = Progress(record, seen, fatal=header.shape.kind == "panic")
        self.circumstances = Circumstances(header)
        self.named = NamedFunctions(self.subject.words_of(header.symbol) if header.symbol else None)
        self.locks = LockWords()
        self.stacks = Stacks(key, CHAIN if self.subject.is_("lockdep") else MAIN)

    def led_by(self, before: Sequence[str], message: Message | None, said: str | None) -> None:
        """Take in what was printed before the first line: the check that failed, the message of a WARN."""
        self.text.lead(before)
        self.named.put_first(self.subject.led_by(message, said))

    @property
    def deadly(self) -> bool:
        return self.subject.kind == "oops" and self.subject.is_("deadly")

    @property
    def dying(self) -> bool:
        """The CPU is busy dying: whatever it stumbles over now is part of this."""
        return self.deadly and not self.progress.ended and not self.provisional

    @property
    def provisional(self) -> bool:
        """It is no finding yet, and gives way to a report of a known kind."""
        return self.subject.is_("provisional") and not self.stacks.frames

    @property
    def panicking(self) -> bool:
        """The kernel says that it panics, and more than just that."""
        return self.progress.fatal and (self.subject.kind != "panic" or self.progress.read_on > 0)

    @property
    def refuted(self) -> bool:
        """The kernel says that it panicked, and goes on: a module said so."""
        return self.subject.kind == "panic" and self.progress.read_on == 0 and self.progress.quiet >= UNRELATED

    @property
    def untraced_slab(self) -> bool:
        """It is slub's, and has no trace of its own yet: since 6.12 a WARNING brings it."""
        return self.subject.is_("slab") and not self.stacks.frames

    @property
    def foreign(self) -> frozenset[str]:
        """Modules from outside of the kernel's tree, as its own list of modules marks them."""
        return frozenset(foreign_modules(self.text.lines)) if self.circumstances.listed else frozenset()

    def goes_on(self, header: Header, text: str) -> bool:
        """Whether this first line is part of this report, and of no other."""
        shape, own = header.shape, self.subject.header
        if self.stacks.frames or shape.kind == "panic":
            return False
        same = shape.class_ == own.shape.class_
        if own.shape.class_ == "kasan" and "kasan: bad access detected" in text:
            return True  # until 4.7 slub describes what KASAN found
        if self.subject.is_("slab"):
            # Since 6.12 slub makes a WARNING within its own report, for the trace of it.
            return shape.class_ == "warning" and (header.file or "").endswith("mm/slub.c")
        if self.subject.untold and find_message(text):
            return True  # until 4.14 the message comes behind the first line
        if same and (self.subject.is_("leak") or self.subject.class_ == "assertion"):
            return True
        # Whoever symbolises a log repeats the line for each function that was inlined.
        return same and self.progress.read_on == 0 and header.about == own.about

    def adopt(self, record: Record) -> None:
        """Begin in the middle: the first line that there is says where, not what."""
        self.progress.lost = True
        self._read(record.text, record.caller or "")

    def go_on(self, header: Header, record: Record, seen: int) -> None:
        """Read a first line that is part of this report."""
        read_on = self.progress.read_on
        self.add(record, seen)
        if self.subject.is_("slab"):
            self.stacks.main(self.key)
            self.circumstances.go_on(header)
            return
        self.progress.read_on = read_on
        if header.symbol:
            self.named.add(self.subject.words_of(header.symbol))
        self.subject.go_on(header)

    def panics(self, record: Record, seen: int) -> None:
        """Read the panic that it led to. Its trace is this report's, too, where the kernel panics before it has one."""
        self.progress.panic(ended=self.stacks.shows_bug)
        self.add(record, seen)

    def add(self, record: Record, seen: int) -> None:
        """Read a further line."""
        text = record.text
        self.progress.hear(record, seen)
        self.text.add(text)
        if self.subject.is_("leak") or self.subject.class_ == "kmemleak":
            text = text.removeprefix("kmemleak: ")
        if self._read(text, record.caller or ""):
            self.progress.advance()
            self.text.keep()
        else:
            # There is no mark of the end in many kinds of report: it is over when nothing like it comes any more.
            self.progress.pass_by(12 if self.stacks.frames and not self.dying else 60)

    def _read(self, text: str, key: str) -> bool:
        """Whether the line is one that reports are made of."""
        if self.progress.reads_end(text):
            return True
        if self.progress.ended:
            return is_of_reports(text)
        frames = find_frames(text, with_addresses=self.subject.is_("leak") or self.subject.is_("slab"))
        if frames:
            for frame in frames:
                self._put(frame, key)
            return True
        # A short one is of decode_stacktrace.sh, which shows the code.
        if text.startswith(_RULE) and self.stacks.frames and self.subject.is_("framed"):
            self.progress.end()
            return True
        self._learn(text)
        return self._turn(text, key) or is_of_reports(text)

    def _put(self, frame: Frame, key: str) -> None:
        main = self.stacks.is_main(key)
        if self.locks.naming and not main:
            self.named.add(frame)
        self.locks.naming = False
        if main and not self.stacks.frames and self.subject.class_ == "kfence" and self.subject.names_instruction:
            frame = frame._replace(exact=True)
        self.stacks.put(frame, key)

    def _turn(self, text: str, key: str) -> bool:
        """Whether another stack begins."""
        turn = self.stacks.turn(text, key)
        if turn is None:
            return False
        if turn.cpu is not None:
            self.circumstances.cpu = turn.cpu
        if turn.first:
            self._put(turn.first, key)
        return True

    def _learn(self, text: str) -> None:
        """Learn from a line that is no frame."""
        self.circumstances.learn(text)
        self.named.learn(text, of_interrupt=self.subject.class_ == "unhandled-irq")
        if self.subject.is_("lockdep"):
            self.circumstances.learn_holder(text)
        if self.subject.is_("lockdep") or self.subject.is_("atomic"):
            self.named.add(self.locks.learn(text))
        if not self.stacks.frames:
            if self.subject.untold:
                is_next = not (self.progress.read_on or self.progress.quiet or is_of_reports(text))
                self.named.put_first(self.subject.learn_why(text, is_next))
            if working := in_flight(text):
                self.stacks.frames.append(working)
        self.subject.learn(text)


_RULE = "=" * 50
