"""One report of the kernel's, from its first line to a finding (kernel/panic.c, arch/*/kernel/)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kmlab.kernel.crash.crash import Crash, fingerprint, foreign_modules
from kmlab.kernel.crash.patterns import Header, Message, checked_by, find_dump, find_message, steady, traits_of
from kmlab.kernel.crash.stack_trace import (
    Frame,
    Section,
    blame,
    find_symbol,
    is_helper,
    is_no_bug,
    is_of_registers,
    parse_frames,
    shows_bug,
)
from kmlab.kernel.crash.unmapped_code import vanished
from kmlab.kernel.log.records import Record

MAX_LINES = 300
MAX_TEXT = 32768
MAX_FRAMES = 64
MAX_SECTIONS = 16
MAX_NAMED = 8


class Report:
    """A report that is being read."""

    def __init__(self, key: str, header: Header, record: Record, seen: int) -> None:
        self.key = key
        self.header = header
        self._set_class(header.shape.class_, header.title)
        self.file, self.line = header.file, header.line
        self.task, self.pid, self.cpu = header.task, header.pid, header.cpu
        self.time = self.last_time = record.time
        self.order = self.last_seen = seen
        self.lines = [record.text]
        self.fatal = header.shape.kind == "panic"
        self.ended = False
        """No frame that follows is part of it."""
        self.done = False
        """Nothing that follows is part of it."""
        self.lost = False
        self.passed = False
        """The kernel went on to other things after it."""
        self._whole = False
        self._leveled = record.level is not None
        self._unloaded: str | None = None
        self._listed = False
        """It has the kernel's list of modules."""
        self._told: Message | None = None
        """What the check said that failed."""
        self._named = [self._words_of(header.symbol)] if header.symbol else []
        """The functions that the report names in its own words."""
        self._working: Frame | None = None
        """The function of the work item that the worker was at."""
        self._jumped = False
        """The fault was to fetch an instruction where there is none."""
        self._earlier = False
        """The place to mend is where the lock was taken first."""
        self._naming = False
        """The next line is the place that this one speaks of."""
        self._locks: set[str] = set()
        self._frames: list[Frame] = []
        self._sections: dict[str, list[Frame]] = {}
        self._at: dict[str, str] = {key: "chain" if self._is("lockdep") else _MAIN}
        self._size = len(record.text)
        self._useful = 1
        self._quiet = 0
        self._read_on = 0
        """Lines behind the first that are part of it."""

    def led_by(self, before: list[str], message: Message | None, said: str | None) -> None:
        """Take in what was printed before the first line: the check that failed, the message of a WARN."""
        self.lines[:0] = before
        self._useful = len(self.lines)
        self._size += sum(map(len, before))
        if message and self.class_ in (*_PLAIN, message.class_):
            self._take(message, said)
        elif self.class_ == "warning":
            self._say(said or "")

    def _take(self, message: Message, said: str | None = None) -> None:
        """Learn from what a check said."""
        self._told = message
        self._set_class(message.class_, message.title)
        if "explained" in message.traits and said:
            self.title = f"{message.title}: {steady(said)}"
        if message.file:
            self.file, self.line = message.file, message.line
        if message.symbol:
            self._named.insert(0, message.symbol)

    def _say(self, said: str) -> None:
        said = steady(said) or self.header.what
        self.title = f"WARNING: {said}" if said else "WARNING"

    def _set_class(self, class_: str, title: str) -> None:
        """Take a class and a title, and what is true of findings of that class."""
        self.class_, self.title = class_, title
        self._traits = self.header.shape.traits | traits_of(class_)

    def _is(self, trait: str) -> bool:
        return trait in self._traits

    @property
    def deadly(self) -> bool:
        return self.header.shape.kind == "oops" and self._is("deadly")

    @property
    def dying(self) -> bool:
        """The CPU is busy dying: whatever it stumbles over now is part of this."""
        return self.deadly and not self.ended and not self.provisional

    @property
    def provisional(self) -> bool:
        """It is no finding yet, and gives way to a report of a known kind."""
        return self._is("provisional") and not self._frames

    @property
    def shows_bug(self) -> bool:
        """A stack of its own says where it was."""
        known = [frame for frame in self._frames if frame.reliable] or [f._replace(reliable=True) for f in self._frames]
        return any(map(shows_bug, known))

    @property
    def panicking(self) -> bool:
        """The kernel says that it panics, and more than just that."""
        return self.fatal and (self.header.shape.kind != "panic" or self._read_on > 0)

    @property
    def refuted(self) -> bool:
        """The kernel says that it panicked, and goes on: a module said so."""
        return self.header.shape.kind == "panic" and self._read_on == 0 and self._quiet >= _UNRELATED

    def pass_by(self) -> None:
        """Learn that somebody spoke of other things."""
        self._quiet += 1

    @property
    def foreign(self) -> frozenset[str]:
        """Modules from outside of the kernel's tree, as its own list of modules marks them."""
        return frozenset(foreign_modules(self.lines)) if self._listed else frozenset()

    def refine(self, header: Header) -> None:
        """Learn from a second first line, such as `invalid opcode:` after `kernel BUG at`."""
        if self.class_ == "oops" and header.shape.kind == "oops":
            self._set_class(header.shape.class_, header.title)
        if self.file is None and self.class_ == header.shape.class_:
            self.file, self.line = header.file, header.line

    def goes_on(self, header: Header, text: str) -> bool:
        """Whether this first line is part of this report, and of no other."""
        if self._frames or header.shape.kind == "panic":
            return False
        same = header.shape.class_ == self.header.shape.class_
        if self._is("slab"):
            # Since 6.12 slub makes a WARNING within its own report, for the trace of it.
            return header.shape.class_ == "warning" and (header.file or "").endswith("mm/slub.c")
        if self.class_ in ("warning", "bug") and self._told is None and find_message(text):
            return True  # until 4.14 the message comes behind the first line
        if same and (self._is("leak") or self.class_ == "assertion"):
            return True
        # Whoever symbolises a log repeats the line for each function that was inlined.
        return same and self._read_on == 0 and header.about == self.header.about

    def adopt(self, record: Record) -> None:
        """Begin in the middle: the first line that there is says where, not what."""
        self.lost = True
        self._read(record.text, record.caller or "")

    def go_on(self, header: Header, record: Record, seen: int) -> None:
        """Read a first line that is part of this report."""
        read_on = self._read_on
        self.add(record, seen)
        if self._is("slab"):
            self._at[self.key] = _MAIN
            self.pid, self.cpu = header.pid or self.pid, header.cpu if self.cpu is None else self.cpu
            return
        self._read_on = read_on
        if header.symbol:
            self._name(self._words_of(header.symbol))
            if "names" in header.shape.traits:
                self.header = header
                self._set_class(self.class_, self.title)
        if header.file and self.file is None:
            self.file, self.line = header.file, header.line

    @property
    def untraced_slab(self) -> bool:
        """It is slub's, and has no trace of its own yet: since 6.12 a WARNING brings it."""
        return self._is("slab") and not self._frames

    def may_panic(self, text: str) -> bool:
        """Whether a panic with these words is what this report led to."""
        if self.fatal or self.provisional:
            return False
        said = text.partition("not syncing: ")[2].strip()
        if len(said) >= _WORDS and any(said in line for line in self.lines):
            return True
        for words, causes in _PANICS:
            if words.search(text):
                return bool(causes & {self.class_, *traits_of(self.class_), "any", self.header.shape.kind})
        return self.dying

    def panics(self, record: Record, seen: int) -> None:
        """Read the panic that it led to. Its trace is this report's, too, where the kernel panics before it has one."""
        self.ended = self.shows_bug
        self.fatal, self.done = True, False
        self.add(record, seen)

    def add(self, record: Record, seen: int) -> None:
        """Read a further line."""
        text = record.text
        self.last_time, self.last_seen = record.time, seen
        if len(self.lines) < MAX_LINES and self._size + len(text) < MAX_TEXT:
            self.lines.append(text)
            self._size += len(text) + 1
        if self._is("leak"):
            text = text.removeprefix("kmemleak: ")
        if self._read(text, record.caller or ""):
            self._quiet = 0
            self._read_on += 1
            self._useful = len(self.lines)
            return
        # There is no mark of the end in many kinds of report: it is over when nothing like it comes any more.
        self._quiet += 1
        if self._quiet > (12 if self._frames and not self.dying else 60):
            self.done = self.passed = True

    def finish(self, own: frozenset[str], foreign: frozenset[str] = frozenset()) -> Crash | None:
        """Return the finding, or None when it was only a line that looked like one."""
        shape = self.header.shape
        if self._is_empty():
            return None
        if "work" in shape.traits and self._working:
            self._named = [self._working]
        elif self._working:
            self._name(self._working)
        frames, sections = self._stacks()
        if not frames and self._named:
            frames = (self._named[0],)
        if self.class_ in ("bug", "warning") and frames and frames[0].module is None:
            self.class_, self.title = checked_by(frames[0].name, self.header.file) or (self.class_, self.title)
        frames = self._settled(frames)
        # Where it jumped to is no place of a program: whoever called is to blame.
        called = frames[1:] if self._jumped and len(frames) > 1 else frames
        blamed = blame(called, sections, own, hang=shape.kind == "hang", named=self._named, suspects=foreign)
        guilty = self._pronounced(frames, blamed) or blamed
        module, title = guilty.module if guilty else self.header.module, self.title
        if self._in_unloaded(frames, own):
            guilty, module, title = None, self._unloaded, f"{title} in unloaded module {self._unloaded}"
        elif guilty and guilty.function.startswith("0x"):
            guilty = None  # a kernel without names of functions knows the module all the same
            title = f"{title} in module {module}" if module else title
        elif guilty:
            title = f"{title} in {guilty.name}"
        file, line = (self.file, self.line) if self._says_where(guilty, frames) else (None, None)
        if guilty and guilty.file and (file is None or guilty.own):
            file, line = guilty.file, guilty.line
        told = f"{title} {file}:{line}" if guilty is None and file else title
        return Crash(
            kind="panic" if self.fatal else shape.kind,
            class_=self.class_,
            title=title,
            function=guilty.name if guilty else None,
            module=module,
            file=file,
            line=line,
            task=self.task,
            pid=self.pid,
            cpu=self.cpu,
            frames=frames,
            sections=sections,
            text="\n".join(self.lines[: self._useful]),
            fatal=self.fatal,
            truncated=self._is_truncated(),
            fingerprint=fingerprint("hang" if shape.kind == "hang" else self.class_, told, guilty, frames),
            time=self.time,
        )

    def _is_empty(self) -> bool:
        """Whether it only looks like a report: a module's own words, or a stack that somebody asked for."""
        if self._is("provisional"):
            return not self.shows_bug or any(map(is_no_bug, self._frames))
        if self.lost or "line" in self.header.shape.traits or self._is_tracking():
            return not self.lost and self._is_tracking()
        if not self.passed and (self._read_on or self._quiet < _UNRELATED):
            return False
        if self.header.shape.kind == "panic":
            # A kernel that has panicked says nothing else any more.
            return not self._whole and not any(frame.name in ("panic", "vpanic") for frame in self._frames)
        # Somebody may have saved nothing but first lines; a console that tells the levels tells all.
        return self._read_on == 0 and not self.fatal and self._leveled

    def _is_tracking(self) -> bool:
        """Whether it is about the locks of kmemleak's own messages, which are printed while it holds them."""
        return self._is("lockdep") and {"kmemleak_lock", "console_owner"} <= self._locks

    def _is_truncated(self) -> bool:
        shape = self.header.shape
        return (
            self.lost
            or (shape.ends and not self._whole and not self.fatal)
            or (shape.kind == "panic" and not self._whole)
            or (shape.traced and not self.shows_bug)
        )

    def _stacks(self) -> tuple[tuple[Frame, ...], tuple[Section, ...]]:
        """Return the main stack and the others."""
        sections = {name: tuple(found) for name, found in self._sections.items() if found}
        frames = tuple(self._frames)
        earlier = next((name for name in sections if name.endswith("state was registered at")), None)
        if self._earlier and earlier and any(not is_helper(frame) for frame in sections[earlier]):
            # The lock is right to be taken in the interrupt: what is wrong is the place that left interrupts on.
            found = sections.pop(earlier)
            return found, (*(Section(*item) for item in sections.items()), Section("stack backtrace", frames))
        return frames, tuple(Section(*item) for item in sections.items())

    def _pronounced(self, frames: Sequence[Frame], blamed: Frame | None) -> Frame | None:
        """Return the function that is guilty whatever the trace says, as the report says so itself."""
        traits = self.header.shape.traits | (self._told.traits if self._told else set())
        if not self._named or not traits & {"names", "work", "holds"}:
            return None
        word = self._named[0]
        if "work" in traits and word is not self._working:
            return None
        if word.module is None and word.offset is None and blamed:
            # It was inlined in what the trace shows of that module, perhaps.
            word = word._replace(module=blamed.module)
        return next((frame for frame in frames if frame.name == word.name), word)

    def _words_of(self, symbol: Frame) -> Frame:
        """Return the function in the first line: where a sanitizer names the return address of its own call."""
        at_call = self.header.shape.class_ in ("kasan", "kmsan", "kcsan") or not self._is_exact()
        return symbol._replace(exact=symbol.exact and not at_call)

    def _is_exact(self) -> bool:
        """Whether the report is about the very instruction, not a call: KFENCE finds an access by its page fault."""
        return self.class_ != "kfence" or not self.header.what.startswith(("invalid free", "memory corruption"))

    def _name(self, symbol: Frame) -> None:
        if len(self._named) < MAX_NAMED:
            self._named.append(symbol)

    def _read(self, text: str, key: str) -> bool:
        """Whether the line is one that reports are made of."""
        if text.startswith("---[ end "):
            self.ended = self._whole = True
            # An oops that was already fatal goes on to the end of its panic.
            self.done = not self.fatal or "panic" in text
            return True
        if self.fatal and text.startswith("Rebooting in "):
            self._whole = self.done = True
            return True
        if self.ended:
            return _is_of_reports(text)
        frames = parse_frames(text)
        if frames:
            for frame in frames:
                self._put(frame, key)
            return True
        raw = _ADDRESS.match(text) if self._is("leak") or self._is("slab") else None
        if raw:
            self._put(Frame(raw[1], None, None, None, reliable=True, exact=False), key)
            return True
        # A short one is of decode_stacktrace.sh, which shows the code.
        if text.startswith(_RULE) and self._frames and self._is("framed"):
            self.ended = self._whole = self.done = True
            return True
        self._learn(text)
        section = _SECTION.match(text)
        if section:
            self._turn(section, text, key)
            return True
        return _is_of_reports(text)

    def _put(self, frame: Frame, key: str) -> None:
        at = self._at.setdefault(key, _MAIN)
        if self._naming and at != _MAIN:
            self._name(frame)
        self._naming = False
        if at == _MAIN:
            frames = self._frames
            if not frames and self.class_ == "kfence" and self._is_exact():
                frame = frame._replace(exact=True)
        elif at in self._sections or len(self._sections) < MAX_SECTIONS:
            frames = self._sections.setdefault(at, [])
        else:
            return
        last = frames[-1] if frames else None
        if last:
            # arm64 since 6.13 begins the trace with the pc once more; 32-bit arm names each function twice.
            if (last.exact and last[:2] == frame[:2]) or (
                frame.offset is None and not frame.file and last.name == frame.name
            ):
                return
            if last.inlined and frame.module and not frame.inlined:
                self._own_inlined(frames, frame.module)
        if len(frames) < MAX_FRAMES:
            frames.append(frame)

    @staticmethod
    def _own_inlined(frames: list[Frame], module: str) -> None:
        """Give the module the functions that were inlined in its own."""
        for at in range(len(frames) - 1, -1, -1):
            if not frames[at].inlined or frames[at].module:
                return
            frames[at] = frames[at]._replace(module=module)

    def _turn(self, section: re.Match[str], text: str, key: str) -> None:
        """Another stack begins."""
        name = section[0].strip(": ").lower()
        cpu = section["cpu"]
        if name in ("call trace", "stack backtrace", "backtrace"):
            if self._at.get(key) == _VICTIM:
                return
            # Only the first names the culprit; but slub and lockdep print theirs behind others.
            if not self._frames or (len(self._frames) == 1 and self._frames[0].exact):
                self._at[key] = _MAIN
            elif name != "call trace":
                self._at[key] = name
            return
        if text.startswith("task:rcu_"):
            # RCU's own thread is what a stall keeps waiting, not what stalls.
            self._at[key] = _VICTIM
            return
        if section["other"]:
            # Of several CPUs or tasks the first that has a stack is the one the report is about.
            self._at[key] = f"cpu {cpu}" if cpu else name
            if not self._frames and "skipped" not in text:
                self._at[key] = _MAIN
                if cpu:
                    self.cpu = int(cpu)
            return
        self._at[key] = name.removesuffix(" in").removesuffix(" by task")
        if section[0].endswith(" in "):
            first, raw = find_symbol(text), _TRACKED.match(text)
            if first or raw:
                frame = first or Frame(raw[1] if raw else "", None, None, None, reliable=True, exact=False)
                self._put(frame._replace(exact=False), key)

    def _learn(self, text: str) -> None:
        """Who and where, from the lines that say so."""
        who = find_dump(text)
        if who:
            self.cpu = who.cpu if self.cpu is None else self.cpu
            self.pid = who.pid if self.pid is None else self.pid
            if self.task is None and who.pid == self.pid:
                self.task = who.task
        elif self.pid is None and (" pid" in text or " task " in text):
            named = _NAMED.search(text)
            if named:
                self.pid = int(named[2] or named[3] or named[6])
                self.task = named[1] or named[4] or named[5]
        if text.startswith(("#PF: supervisor instruction fetch", "kernel tried to execute NX-protected page")):
            self._jumped = True
        if self._working is None and text.startswith(_WORKERS):
            working = _WORKING.search(text)
            self._working = Frame(working[1], None, None, working[2], reliable=True, exact=False) if working else None
        self._listed = self._listed or text.startswith("Modules linked in")
        if "last unloaded: " in text:
            unloaded = _UNLOADED.search(text)
            self._unloaded = unloaded[1] if unloaded else None
        if self._is("lockdep"):
            self._learn_of_locks(text)
        elif self.class_ == "unhandled-irq" and (handler := _HANDLER.match(text)):
            self._name(Frame(handler[1], None, None, handler[2], reliable=True, exact=False))
        elif self.class_ == "rcu-usage" and self.file is None and (place := _SUSPICIOUS.match(text)):
            self.file, self.line = place[1], int(place[2])
        if self.class_ in ("warning", "bug") and not self._frames and self._told is None:
            self._learn_why(text)
        if text.startswith(("KASAN: null-ptr-deref", "Failing address: 0000000000000")) and self.class_ in _ACCESSES:
            self._is_null()
        elif self.class_ == "oops" and text.startswith("CR2: "):
            # The first line was lost; the address that was touched tells what it said.
            self._set_class("page-fault", "BUG: unable to handle page fault")
            if text.startswith("CR2: 0000000000000"):
                self._is_null()
        elif not self._frames and "in-flight:" in text:
            working = _IN_FLIGHT.search(text)
            if working:
                self._frames.append(Frame(working[1], None, None, working[2], reliable=True, exact=False))

    def _is_null(self) -> None:
        self._set_class("null-dereference", "BUG: kernel NULL pointer dereference")

    def _learn_of_locks(self, text: str) -> None:
        """Who took the lock and where, and which of two places is wrong."""
        if self.pid is None and "/" in text:
            holder = _HOLDER.match(text)
            if holder:
                self.task, self.pid = holder[1], int(holder[2])
        if ", at: " in text and len(self._locks) < MAX_NAMED:
            self._locks.update(_LOCK.findall(text))
        if ", at: " in text:
            symbol = find_symbol(text.partition(", at: ")[2])
            if symbol:
                self._name(symbol._replace(exact=False))
        self._naming = text.endswith(" at:") and "lock" in text and not text.startswith("{")
        if text.startswith("inconsistent {") and _USAGE.search(text):
            self._earlier = True

    def _learn_why(self, text: str) -> None:
        """Return the message of a WARN, which kernels before 4.15 print behind its first line."""
        message = find_message(text)
        if message:
            self._take(message)
        elif self.title == "WARNING" and not (self._read_on or self._quiet or _is_of_reports(text)):
            self._say(text)

    def _settled(self, frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
        """Return the frames with the address of a trap, which is that of the next instruction, as one after a call.

        And without a name for code that had gone.
        """
        gone = vanished(self.class_, frames[0], self.lines) if frames else None
        if gone is not None:
            self._jumped = True
            return (gone, *frames[1:])
        if self.class_ == "int3" and frames and frames[0].exact:
            return (frames[0]._replace(exact=False), *frames[1:])
        return frames

    def _in_unloaded(self, frames: tuple[Frame, ...], own: frozenset[str]) -> bool:
        """Whether it ran code of a module that is gone: a timer or a work item that outlived it."""
        if not self._unloaded or (own and self._unloaded not in own) or not frames:
            return False
        nowhere = frames[0].exact and re.match(r"0xf{3,}[0-9a-f]{3,}$", frames[0].function)
        return bool(nowhere) and not any(f.module for f in frames if f.reliable)

    def _says_where(self, guilty: Frame | None, frames: tuple[Frame, ...]) -> bool:
        """Whether the place in the first line is in the guilty function, not in the check that it failed."""
        if self.file is None or guilty is None:
            return self.file is not None
        if self._told and self._told.file:
            return True
        if self.header.symbol:
            return self.header.symbol.name == guilty.name
        if frames and frames[0].exact:
            return frames[0].name == guilty.name
        plain = next((f for f in frames if f.reliable and not is_helper(f)), None)
        return plain is not None and plain.name == guilty.name


def _is_of_reports(text: str) -> bool:
    """Whether reports have lines that begin like this one."""
    return text.startswith(_VOCABULARY) or is_of_registers(text)


_RULE = "=" * 50
_MAIN = ""
_VICTIM = "rcu kthread"
_WORDS = 4
"""Characters of a panic's message that are enough to find it again in the report that led to it."""
_UNRELATED = 4
"""Lines about other things that are enough to tell that a first line was only a module's own words."""
_ACCESSES = ("gpf", "page-fault", "oops")
_PLAIN = ("bug", "warning", "invalid-opcode", "stack-dump")
"""Classes that say nothing of what was wrong: the message of the check does."""

_PANICS: tuple[tuple[re.Pattern[str], frozenset[str]], ...] = (
    (re.compile(r"panic_on_warn|panic_on_taint"), frozenset({"any"})),
    (re.compile(r"kasan\.fault|kasan_multi_shot|KASAN"), frozenset({"kasan"})),
    (re.compile(r"kmsan\.panic|panic_on_kmsan"), frozenset({"kmsan"})),
    (re.compile(r"softlockup|hung_task|RCU Stall|(?i:hard lockup)|workqueue"), frozenset({"hang"})),
    (
        re.compile(
            r"Fatal exception|Oops|[Aa]ttempted to kill|Aiee|[Ff]atal (?:machine|hardware|error)|kernel stack overflow"
            r"|SError|halted|double fault|bad mode|Unrecoverable|BUG!|Unhandled exception"
        ),
        frozenset({"deadly", "stack-dump"}),
    ),
)
"""What a panic says, and the classes, kinds or traits of what it can be the end of."""

_SECTION = re.compile(
    r"\s{0,8}(?:Call [Tt]race|stack backtrace|[Bb]acktrace|(?:Last"
    r"|Second to last) potentially related work creation"
    r"|(?:Allocated|Freed|allocated|freed) by task|(?:Allocated|Freed) in (?=\S)"
    r"|Uninit was (?:stored to memory|created) at|page last (?:allocated|free)"
    r"|the existing dependency chain|Preemption disabled at|\{[\w -]{1,40}\} state was registered at"
    r"|kfence-#\d{1,9}(?=:)|(?P<other>NMI backtrace for cpu (?P<cpu>\d{1,5})|task:\S{1,64}"
    r"|(?:read|write|read-write|assert no writes)(?: \(\w+\))? to 0x[0-9a-f]{1,16} of \d{1,9} bytes)"
    r"|RCU grace-period kthread stack dump|rcu: RCU grace-period kthread stack dump|Last Breaking-Event-Address)"
)
_NAMED = re.compile(
    r"by task (.{1,64}?)/(\d{1,9})(?!\S)|pid: (\d{1,9}), name: (.{1,64})$|comm \"(.{1,64}?)\", pid (\d{1,9})"
)
_HANDLER = re.compile(r"\[<[0-9a-f]{8,16}>\] ([A-Za-z_][\w.]{0,127})(?: \[([\w-]{1,64})\])?(?: threaded .{0,150})?$")
"""Who had registered for an interrupt that nobody wanted (print_irq_handlers())."""
_SUSPICIOUS = re.compile(r"([^\s:]{1,255}):(\d{1,7}) (?:suspicious rcu_|Illegal context|.{0,80}usage)")
"""What lockdep says of RCU: where the macro stands (lockdep_rcu_suspicious())."""
_LOCK = re.compile(r" \(([\w&.>*#/-]{1,80})\)\{")
_ADDRESS = re.compile(r"\s{1,16}(?:\[<[0-9a-f]{8,16}>\] )?(0x[0-9a-f]{9,16})\s{0,4}$")
"""A frame of kmemleak's or slub's in a module that is gone."""
_TRACKED = re.compile(r"\s{0,8}(?:Allocated|Freed) in (0x[0-9a-f]{9,16})\s")
_HOLDER = re.compile(
    r"(?:\d{1,3} locks? held by )?(.{1,64}?)/(\d{1,9})(?: \[[^\]]{1,80}\])?(?: is (?:trying|freeing|leaving)| takes|:)"
)
_USAGE = re.compile(r"\{\w{1,20}-ON-\w\} -> \{IN-")
_UNLOADED = re.compile(r"\[last unloaded: ([\w-]{1,64})")
_WORKERS = ("Workqueue: ", "     last function: ", "     preempt=")
_WORKING = re.compile(
    r"(?:Workqueue: \S{1,64}| {4,8}last function:|workfn=) ?([A-Za-z_][\w.]{0,127})(?: \[([\w-]{1,64})\])?"
    r"(?: \(.{0,64}\))?\s{0,4}$"
)
_IN_FLIGHT = re.compile(r"in-flight: ?(?:\d{1,9}(?:\(RESCUER\))?:)?([A-Za-z_][\w.]{0,127})(?: \[([\w-]{1,64})\])?")

# How the lines between the first and the last begin. A line that begins with a space is one of theirs, too. What an
# architecture adds stands in its row of stackformats.
_VOCABULARY = (
    *(" ", "\t", "<", "#", "-", "=", "CPU: ", "Code: ", "Call "),
    *("Modules linked", "Hardware name", "Workqueue: ", "Tainted: "),
    *("[0000", "[ffff", "[dead", "Oops", "Internal error", "note: ", "task:"),
    *("NMI backtrace", "Sending NMI", "rcu: ", "Showing ", "workqueue ", "pool ", "The buggy"),
    *("Memory state", ">", "flags: ", "page:", "page_type", "raw: ", "head: ", "Allocated ", "Freed "),
    *("allocated by", "freed by", "kfence-", "INFO: ", "Write of size", "Read of size", "Slab 0x"),
    *("Slab ", "Object ", "Redzone ", "Padding ", "Bytes b4", "FIX ", "Disabling", "in_atomic"),
    *("preempt_count", "RCU nest", "caller is", "irq event", "hardirqs ", "softirqs "),
    *("Preemption disabled", "other info", "stack backtrace", "which lock", "but task", "but there"),
    *("the existing", "the dependencies", "Chain exists", "1 lock", "2 locks", "3 locks", "no locks"),
    *("Possible ", "backtrace", "hex dump", "comm ", "Kernel Offset", "KASAN: ", "CPU#", '"echo '),
    *("Reported by", "value changed", "Kernel panic", "Rebooting", "SMP: ", "BUG: ", "WARNING: "),
    *(
        "handlers:",
        "[<",
        "Future ",
        "Local variable",
        "Uninit",
        "Bytes ",
        "Memory access",
        "Last potentially",
        "Key type",
    ),
)
