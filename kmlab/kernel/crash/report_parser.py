"""One report of the kernel's, from its first line to a finding (kernel/panic.c, arch/*/kernel/)."""

from __future__ import annotations

import re

from kmlab.kernel.crash.crash import Crash, fingerprint
from kmlab.kernel.crash.patterns import Header, checked_by, is_deadly, steady
from kmlab.kernel.crash.stack_trace import Frame, Section, blame, find_symbol, is_helper, parse_frame
from kmlab.kernel.crash.unmapped_code import vanished
from kmlab.kernel.log.records import Record

MAX_LINES = 300
MAX_TEXT = 32768
MAX_FRAMES = 64
MAX_SECTIONS = 16


class Report:
    """A report that is being read."""

    def __init__(self, key: str, header: Header, record: Record, seen: int) -> None:
        self.key = key
        self.header = header
        self.class_ = header.shape.class_
        self.title = header.shape.title.format(what=header.what).rstrip(": ")
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
        self._whole = False
        self._unloaded: str | None = None
        self._named: Frame | None = None
        """The function that the message itself is about."""
        self._working: Frame | None = None
        """The function of the work item that the worker was at."""
        self._jumped = False
        """The fault was to fetch an instruction where there is none."""
        self._frames: list[Frame] = []
        self._sections: dict[str, list[Frame]] = {}
        self._at: dict[str, str] = {key: "chain" if self.class_.startswith("lockdep") else _MAIN}
        self._size = len(record.text)
        self._useful = 1
        self._quiet = 0

    def led_by(self, before: list[str], prelude: tuple[str, str] | None, message: str | None) -> None:
        """Take in what was printed before the first line: the check that failed, the message of a WARN."""
        self.lines[:0] = before
        self._useful = len(self.lines)
        self._size += sum(map(len, before))
        if prelude and self.class_ in ("bug", "warning", "invalid-opcode", prelude[0]):
            self.class_, self.title = prelude
            if self.class_ == "preempt-imbalance":
                self._named = find_symbol(" ".join(before))
        elif self.class_ == "warning":
            said = steady(message or "") or self.header.what
            self.title = f"WARNING: {said}" if said else "WARNING"

    @property
    def deadly(self) -> bool:
        return self.header.shape.kind == "oops" and is_deadly(self.class_)

    @property
    def dying(self) -> bool:
        """The CPU is busy dying: whatever it stumbles over now is part of this."""
        return self.deadly and not self.ended

    @property
    def traced(self) -> bool:
        return bool(self._frames)

    def refine(self, header: Header) -> None:
        """Learn from a second first line, such as `invalid opcode:` after `kernel BUG at`."""
        if self.class_ == "oops" and header.shape.kind == "oops":
            self.class_, self.title = (
                header.shape.class_,
                header.shape.title.format(what=header.what).rstrip(": "),
            )
        if self.file is None and self.class_ == header.shape.class_:
            self.file, self.line = header.file, header.line

    def goes_on(self, header: Header) -> bool:
        """Whether this first line is of the WARNING that slub makes within its own report, for the trace of it."""
        of_slub = header.shape.class_ == "warning" and (header.file or "").endswith("mm/slub.c")
        return of_slub and self.untraced_slab

    @property
    def untraced_slab(self) -> bool:
        """It is slub's, and has no trace of its own yet: since 6.12 a WARNING brings it."""
        return self.class_ in ("slab-corruption", "slab-leak") and not self._frames

    def go_on(self, header: Header, record: Record, seen: int) -> None:
        """Read the first line of a WARNING that is part of this report."""
        self.add(record, seen)
        self._at[self.key] = _MAIN
        self.pid, self.cpu = header.pid or self.pid, header.cpu if self.cpu is None else self.cpu

    def may_panic(self, text: str) -> bool:
        """Whether a panic with these words is what this report led to."""
        if self.fatal:
            return False
        if "panic_on_warn" in text:
            return True
        if _HANG_PANIC.search(text):
            return self.header.shape.kind == "hang"
        if _OOPS_PANIC.search(text):
            return self.deadly
        return self.dying

    def add(self, record: Record, seen: int) -> None:
        """Read a further line."""
        text = record.text
        self.last_time, self.last_seen = record.time, seen
        if len(self.lines) < MAX_LINES and self._size + len(text) < MAX_TEXT:
            self.lines.append(text)
            self._size += len(text) + 1
        if self._read(text, record.caller or ""):
            self._quiet = 0
            self._useful = len(self.lines)
            return
        # There is no mark of the end in many kinds of report: it is over when nothing like it comes any more.
        self._quiet += 1
        if self._quiet > (12 if self._frames else 60):
            self.done = True

    def finish(self, own: frozenset[str]) -> Crash | None:
        """The finding, or None when it was only a line that looked like one."""
        shape = self.header.shape
        if self.class_ == "other" and not self._frames:
            return None
        if not self._frames and self.header.symbol:
            self._frames.append(self.header.symbol)
        if self._named:
            self._frames.insert(0, self._named)
        frames = tuple(self._frames)
        sections = tuple(Section(name, tuple(found)) for name, found in self._sections.items() if found)
        if self.class_ in ("bug", "warning") and frames and frames[0].module is None:
            self.class_, self.title = checked_by(frames[0].name) or (self.class_, self.title)
        guilty = self.header.symbol if shape.names else self._named
        frames = self._settled(frames)
        # Where it jumped to is no place of a program: whoever called is to blame.
        called = frames[1:] if self._jumped and len(frames) > 1 else frames
        guilty = guilty or blame(called, sections, own, hang=shape.kind == "hang")
        if self._working and (self._working.module in own or not own) and not (guilty and guilty.module):
            guilty = self._working
        module, title = guilty.module if guilty else None, self.title
        if self._in_unloaded(frames, own):
            guilty, module, title = None, self._unloaded, f"{title} in unloaded module {self._unloaded}"
        elif guilty:
            title = f"{title} in {guilty.name}"
        said = self._says_where(guilty, frames)
        truncated = (
            self.lost
            or (shape.ends and not self._whole and not self.fatal)
            or (shape.kind == "panic" and not self._whole)
            or (shape.traced and not frames)
        )
        return Crash(
            kind="panic" if self.fatal else shape.kind,
            class_=self.class_,
            title=title,
            function=guilty.name if guilty else None,
            module=module,
            file=self.file if said else None,
            line=self.line if said else None,
            task=self.task,
            pid=self.pid,
            cpu=self.cpu,
            frames=frames,
            sections=sections,
            text="\n".join(self.lines[: self._useful]),
            fatal=self.fatal,
            truncated=truncated,
            fingerprint=fingerprint("hang" if shape.kind == "hang" else self.class_, title, guilty, frames),
            time=self.time,
        )

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
            return text.startswith(_VOCABULARY)
        if "+0x" in text or text.startswith(("RIP: 0010:", "pc : ")) or "(" in text:
            frame = parse_frame(text)
            if frame:
                self._put(frame, key)
                return True
        if text.startswith("====") and self._frames and self.class_ in _FRAMED:
            self.ended = self._whole = self.done = True
            return True
        self._learn(text)
        section = _SECTION.match(text)
        if section:
            self._turn(section, text, key)
            return True
        return text.startswith(_VOCABULARY)

    def _put(self, frame: Frame, key: str) -> None:
        at = self._at.setdefault(key, _MAIN)
        if at == _MAIN:
            frames = self._frames
        elif at in self._sections or len(self._sections) < MAX_SECTIONS:
            frames = self._sections.setdefault(at, [])
        else:
            return
        # arm64 since 6.13 begins the trace with the pc once more.
        if frames and frames[-1].exact and frames[-1][:2] == frame[:2]:
            return
        if len(frames) < MAX_FRAMES:
            frames.append(frame)

    def _turn(self, section: re.Match[str], text: str, key: str) -> None:
        """Another stack begins."""
        name = section[0].rstrip(": ").lower()
        cpu = section["cpu"]
        if name in ("call trace", "stack backtrace", "backtrace"):
            # Only the first names the culprit; but slub and lockdep print theirs behind others.
            if not self._frames or (len(self._frames) == 1 and self._frames[0].exact):
                self._at[key] = _MAIN
            elif name != "call trace":
                self._at[key] = name
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
        first = find_symbol(text) if section[0].endswith(" in ") else None
        if first:
            self._put(first._replace(exact=False), key)

    def _learn(self, text: str) -> None:
        """Who and where, from the lines that say so."""
        if text.startswith("CPU: "):
            found = _CPU.match(text)
            if found:
                self.cpu = int(found[1]) if self.cpu is None else self.cpu
                self.pid = int(found[2]) if self.pid is None else self.pid
                if self.task is None and int(found[2]) == self.pid:
                    self.task = found[3]
        elif self.pid is None and (" pid" in text or " task " in text):
            named = _NAMED.search(text)
            if named:
                self.pid = int(named[2] or named[3] or named[6])
                self.task = named[1] or named[4] or named[5]
        if text.startswith(("#PF: supervisor instruction fetch", "kernel tried to execute NX-protected page")):
            self._jumped = True
        if self._working is None and text.startswith(_WORKERS):
            working = _WORKING.match(text)
            self._working = Frame(working[1], None, None, working[2], reliable=True, exact=False) if working else None
        if "last unloaded: " in text:
            unloaded = _UNLOADED.search(text)
            self._unloaded = unloaded[1] if unloaded else None
        if text.startswith("KASAN: null-ptr-deref") and self.class_ in ("gpf", "page-fault", "oops"):
            self.class_, self.title = "null-dereference", "BUG: kernel NULL pointer dereference"
        elif self.class_ == "oops" and text.startswith("CR2: "):
            # The first line was lost; the address that was touched tells what it said.
            null = text.startswith("CR2: 0000000000000")
            self.class_ = "null-dereference" if null else "page-fault"
            self.title = f"BUG: {'kernel NULL pointer dereference' if null else 'unable to handle page fault'}"
        elif not self._frames and "in-flight:" in text:
            working = _IN_FLIGHT.search(text)
            if working:
                self._frames.append(Frame(working[1], None, None, working[2], reliable=True, exact=False))

    def _settled(self, frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
        """The frames with the address of a trap, which is that of the next instruction, as one after a call.

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
        if self.header.symbol:
            return self.header.symbol.name == guilty.name
        if frames and frames[0].exact:
            return frames[0].name == guilty.name
        plain = next((f for f in frames if f.reliable and not is_helper(f)), None)
        return plain is not None and plain.name == guilty.name


_MAIN = ""
_FRAMED = ("kasan", "kfence", "kcsan", "kmsan", "ubsan")

_OOPS_PANIC = re.compile(
    r"Fatal exception|Oops|[Aa]ttempted to kill|Aiee|[Ff]atal (?:machine|hardware|error)"
    r"|kernel stack overflow|SError|halted"
    r"|double fault|bad mode|Unrecoverable|BUG!"
)
_HANG_PANIC = re.compile(r"softlockup|hung_task|RCU Stall|(?i:hard lockup)|workqueue")

_SECTION = re.compile(
    r"\s{0,8}(?:Call [Tt]race|stack backtrace|backtrace|(?:Last"
    r"|Second to last) potentially related work creation"
    r"|(?:Allocated|Freed|allocated|freed) by task|(?:Allocated|Freed) in (?=\S)"
    r"|Uninit was (?:stored to memory|created) at"
    r"|the existing dependency chain|Preemption disabled at|\{[\w -]{1,40}\} state was registered at"
    r"|kfence-#\d{1,9}(?=:)|(?P<other>NMI backtrace for cpu (?P<cpu>\d{1,5})|task:\S{1,64}"
    r"|(?:read|write|read-write|assert no writes)(?: \(\w+\))? to 0x[0-9a-f]{1,16} of \d{1,9} bytes)"
    r"|RCU grace-period kthread stack dump)"
)
_CPU = re.compile(
    r"CPU: (\d{1,5})(?: UID: \d{1,12})? PID: (\d{1,9}) Comm: (.{1,64}?)(?: Kdump:| Not tainted| Tainted:|$)"
)
_NAMED = re.compile(
    r"by task (.{1,64}?)/(\d{1,9})(?!\S)|pid: (\d{1,9}), name: (.{1,64})$|comm \"(.{1,64}?)\", pid (\d{1,9})"
)
_UNLOADED = re.compile(r"\[last unloaded: ([\w-]{1,64})")
_WORKERS = ("Workqueue: ", "     last function: ")
_WORKING = re.compile(r"(?:Workqueue: \S{1,64}| {4,8}last function:) ([A-Za-z_][\w.]{0,127}) \[([\w-]{1,64})\]")
_IN_FLIGHT = re.compile(r"in-flight: ?(?:\d{1,9}(?:\(RESCUER\))?:)?([A-Za-z_][\w.]{0,127})(?: \[([\w-]{1,64})\])?")

# How the lines between the first and the last begin. A line that begins with a space is one of theirs, too.
_VOCABULARY = (
    *(" ", "\t", "<", "#", "-", "=", "CPU: ", "RIP: ", "RSP: ", "RAX: ", "RDX: ", "RBP: ", "R10: "),
    *("R13: ", "FS: ", "CS: ", "CR2: ", "DR0: ", "DR3: ", "PKRU: ", "ORIG_RAX", "Code: ", "Call "),
    *("Modules linked", "Hardware name", "Workqueue: ", "Tainted: ", "PGD ", "PUD ", "pc : ", "lr : "),
    *("sp : ", "pstate", "x0 ", "x1", "x2", "x3", "x5", "x6", "x8", "x9", "Mem abort", "Data abort"),
    *("user pgtable", "[0000", "[ffff", "[dead", "Oops", "Internal error", "note: ", "task:"),
    *("NMI backtrace", "Sending NMI", "rcu: ", "Showing ", "workqueue ", "pool ", "The buggy"),
    *("Memory state", ">", "flags: ", "page:", "page_type", "raw: ", "head: ", "Allocated ", "Freed "),
    *("allocated by", "freed by", "kfence-", "INFO: ", "Write of size", "Read of size", "Slab 0x"),
    *("Slab ", "Object ", "Redzone ", "Padding ", "Bytes b4", "FIX ", "Disabling", "in_atomic"),
    *("preempt_count", "RCU nest", "caller is", "irq event", "hardirqs ", "softirqs "),
    *("Preemption disabled", "other info", "stack backtrace", "which lock", "but task", "but there"),
    *("the existing", "the dependencies", "Chain exists", "1 lock", "2 locks", "3 locks", "no locks"),
    *("Possible ", "backtrace", "hex dump", "comm ", "Kernel Offset", "KASAN: ", "CPU#", '"echo '),
    *("Reported by", "value changed", "Kernel panic", "Rebooting", "SMP: ", "BUG: ", "WARNING: "),
    *("Future ", "Local variable", "Uninit", "Bytes ", "Memory access", "Last potentially", "Key type"),
    *("Exception stack", "ESR: ", "FAR: "),
)
