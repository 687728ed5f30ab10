"""The first line of every kind of report that a kernel makes, as one table (lib/bug.c, arch/*/mm/fault.c).

A new class of crash is one row here and one log in tests/data/oops. What other files need to know of a class stands in
its row as a trait; the words to look for in each line of a log come from the rows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from kmlab.kernel.crash.stack_trace import Frame, find_symbol, parse_frames

CLASS_TRAITS = {
    "deadly": "the task that ran into this was killed, so that all it does later is fallout",
    "corrupts": "memory was found in a state that makes a crash soon after its mere consequence",
    "atomic": "one of the names for sleeping, or leaving, where preemption is off",
    "locks": "it is about locks: a task that waits for ever afterwards waits for one of them",
    "lockdep": "it begins with the stacks of earlier locks, and says `at: FUNCTION`",
    "stuck": "a task or a CPU does not go on",
    "slab": "it is about objects of a slab cache; the trace may come in a WARNING of its own",
    "leak": "it is about memory that nobody refers to",
    "framed": "a line of `====` ends it",
    "holds": "a lock was left held: where it was taken is the culprit, not where that was noticed",
    "blinds": "lockdep turns itself off with it, and finds no later bug",
}
"""What is true of all findings of a class. Whoever asks `traits_of` names one of these."""
LINE_TRAITS = {
    "closed": "`---[ end trace` ends the report; without that we do not have all of it",
    "untraced": "the report may come without a stack trace",
    "line": "the report is one line, and never has a trace: it may stand within another report",
    "names": "the symbol in the line is the culprit, whatever the trace says",
    "provisional": "it is a finding only if a trace follows, and gives way to a report of a known kind",
    "quiet": "the kernel, or a module, may print it below the level of a warning",
    "work": "the report is about the work item that it names",
    "explained": "the line that follows says why",
    "placed": "the line says in which function of which file: so much only the one who found it says, with or without "
    "a trace",
}
"""What is true of a report that begins with such a line."""


class Shape(NamedTuple):
    """One kind of report."""

    class_: str
    kind: str
    """The outcome it means where no panic follows: oops, warning, hang or panic."""
    needles: tuple[str, ...]
    """What any line of this shape has one of: looked for in every line of a log, so rows share them where they can."""
    pattern: re.Pattern[str]
    """Matched at the line's start; the groups are what the line itself tells."""
    title: str
    """`{what}` is that group; ` in FUNCTION` is added where one is known."""
    traits: frozenset[str] = frozenset()
    """Keys of CLASS_TRAITS and LINE_TRAITS."""
    function: str | None = None
    """What the report is about, if its first line has no name for it."""

    @property
    def ends(self) -> bool:
        """Whether `---[ end trace` closes the report."""
        return "closed" in self.traits

    @property
    def traced(self) -> bool:
        """Whether the report has a stack trace."""
        return not self.traits & {"untraced", "line"}


class Header(NamedTuple):
    """A line that begins a report, and what it says."""

    shape: Shape
    what: str
    symbol: Frame | None
    file: str | None
    line: int | None
    task: str | None
    pid: int | None
    cpu: int | None
    module: str | None = None

    @property
    def about(self) -> tuple[str | int | None, ...]:
        """What it says, bar the function: the same in each of the lines for functions that were inlined."""
        return (self.what, self.file, self.line, self.task, self.pid, self.cpu)

    @property
    def title(self) -> str:
        return self.shape.title.format(what=self.what).rstrip(": ")


class Message(NamedTuple):
    """What some check says before its BUG or WARNING, or right behind the first line of that."""

    class_: str
    title: str
    symbol: Frame | None
    """The function that it names."""
    file: str | None
    line: int | None
    traits: frozenset[str]


class Check(NamedTuple):
    """A check of the kernel's, which tells the class where its message was lost."""

    function: str
    """How the function that complains begins, or empty."""
    file: str
    """Where the BUG or WARNING stands, or empty."""
    class_: str
    title: str


def is_plain(text: str) -> bool:
    """Whether no row of the tables can match this line, as is so of nearly all lines of a log."""
    # Frames and registers are nearly all lines of a report; what begins one has no blank before it, but assertions may.
    if (text[:1] == " " and "ssertion fail" not in text) or text.startswith(_REGISTERS):
        return True
    # Half of the words have a capital in them, and most of what drivers say has none.
    return not _has(text, _ANY_LOWER if text.islower() else _ANY) and not text.startswith(_DUMP.needles)


def find_header(text: str, level: str | None = None) -> Header | None:
    """Return the report that this line begins, or None. `level` is the record's, where the log says it."""
    if not _has(text, _NEEDLES) or _has(text, _BENIGN):
        return None
    for shape in SHAPES:
        if _has(text, shape.needles):
            found = shape.pattern.match(text)
            if found:
                # No kernel tells of a bug as a mere piece of information; a module that quotes one does.
                return (
                    None if level in _CALM and "quiet" not in shape.traits else _header(shape, text, found.groupdict())
                )
    return None


def find_dump(text: str) -> Header | None:
    """Return the stack that this line begins, where no report led to it: what dump_stack() prints."""
    found = _DUMP.pattern.match(text) if text.startswith(_DUMP.needles) else None
    return _header(_DUMP, "", found.groupdict()) if found else None


def find_orphan(text: str, begins: bool = False) -> Header | None:
    """Return the stack that this line begins, where all that led to it was lost.

    `begins`: the log begins hereabouts, maybe in the middle of the stack.
    """
    if begins and _SUMMARY.match(text):
        return _header(_DUMP, text, {})
    lost = text.startswith(_MIDDLE) or (begins and (text.startswith("---[ end trace ") or bool(parse_frames(text))))
    return _header(_DUMP, "", {}) if lost else None


def find_message(text: str) -> Message | None:
    """Return what a check says before its BUG or WARNING, or None."""
    if not _has(text, _MESSAGE_NEEDLES):
        return None
    for row in MESSAGES:
        found = row.pattern.match(text) if _has(text, row.needles) else None
        if found:
            groups = found.groupdict()
            line = groups.get("line")
            title = row.title.format(what=steady(groups.get("what") or "")).rstrip(": ")
            symbol = _named(groups) or find_symbol(text)
            return Message(row.class_, title, symbol, groups.get("file"), int(line) if line else None, row.traits)
    return None


def checked_by(function: str, file: str | None = None) -> tuple[str, str] | None:
    """Class and title of the check in this function or file of the kernel's, where its message was lost."""
    for check in CHECKS:
        if (check.function and function.startswith(check.function)) or (
            check.file and (file or "").endswith(check.file)
        ):
            return check.class_, check.title
    return None


def kinds_and_classes() -> frozenset[str]:
    """Every word that a finding may be called by."""
    return frozenset(_CLASSES | {shape.kind for shape in SHAPES})


def steady(text: str) -> str:
    """`text` without what differs from one run to the next: addresses, numbers, process ids."""
    text = _HEX.sub("ADDR", text)
    text = _NUMBER.sub("N", text)
    return " ".join(text.split())[:160].rstrip(" .:!,")


def traits_of(class_: str) -> frozenset[str]:
    """Return the keys of CLASS_TRAITS that are true of a class; nothing for an unknown one."""
    return _TRAITS_OF.get(class_, frozenset())


CUT_HERE = "[ cut here ]"
OUTSIDE_THE_TABLE = frozenset({"silent", "deadlock", "unexpected-reboot", "left-behind"})
"""Classes of findings that no line of the log begins: CPUs that say nothing, tasks that wait for each other, a kernel
that boots again, and what is still there after an unload.
"""
PANIC = "Kernel panic - not syncing"

_HEX = re.compile(r"\b0x[0-9a-fA-F]+|\b(?=[a-f]*\d)[0-9a-f]{8,}\b|\(____ptrval____\)|\b[a-f]{12,}\b")
_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w])")


def _shape(
    class_: str, kind: str, needles: str, title: str, pattern: str, traits: str = "", function: str | None = None
) -> Shape:
    """Make a row; needles are separated by `|`, traits by spaces."""
    words = frozenset(traits.split())
    # Whoever is killed gets a report that is closed.
    deadly = {"deadly"} if kind == "oops" and "closed" in words else set()
    return Shape(class_, kind, tuple(needles.split("|")), re.compile(pattern), title, words | deadly, function)


_DOG = r"(?:\w{1,20} ?\w{0,20}: ){0,2}"
# The number is the error code, which no panic, WARNING or log line of a driver has before a `[#1]`. s390x adds the
# length of the instruction.
_DIE = r": (?:0x)?[0-9a-f]{1,16}(?: ilc:\d)? \[#\d{1,6}\]"
_BARE_DIE = r" ?\[#\d{1,6}\]"
_TASK = r"(?P<task>.{1,64})[/:](?P<pid>\d{1,9})"
_PLACE = r"(?P<file>[^\s:]{1,255}):(?P<line>\d{1,9})"
_CPU_LINE = (
    r"(?:CPU: (?P<cpu>\d{1,5})(?: UID: \d{1,12})? )?(?:PID: |Pid: )(?P<pid>\d{1,9}),? (?:Comm: |comm: )"
    r"(?P<task>.{1,64}?)(?: Kdump:| Not tainted| Tainted:|$)"
)
"""Who ran into it: dump_stack_print_info(). The second spelling was that of kernels before 3.10."""

# fmt: off
SHAPES: tuple[Shape, ...] = (
    # Oopses. Each architecture words them its own way and the titles agree, for the bug is the same.
    _shape("null-dereference", "oops", "NULL pointer", "BUG: kernel NULL pointer dereference",
           r"(?:BUG: )?(?:CPU \d{1,5} )?(?:[uU]nable to handle )?[kK]ernel NULL pointer dereference", "closed"),
    _shape("page-fault", "oops", "nable to handle", "BUG: unable to handle page fault",
           r"(?:BUG: [uU]nable to handle (?:page fault|kernel)"
           r"|(?:CPU \d{1,5} )?Unable to handle kernel (?:paging request|access to|write to|execute from"
           r"|read from|pointer dereference|data access|instruction fetch|unaligned access))", "closed"),
    _shape("alignment", "oops", "Alignment trap|Unhandled fault|unaligned access", "unaligned access",
           r"(?:Alignment trap: not handling|Unhandled fault: alignment|Unhandled kernel unaligned access)", "closed"),
    _shape("external-abort", "oops", "Unhandled fault", "external abort",
           r"Unhandled fault: (?:(?:im)?precise |synchronous |asynchronous )*external abort", "closed"),
    _shape("page-fault", "oops", "Unhandled fault", "BUG: unable to handle page fault",
           r"Unhandled fault: [\w ()-]{1,80}", "closed"),
    _shape("gpf", "oops", " [#", "general protection fault",
           rf"(?:Oops: )?(?:segment-related )?general protection fault(?:,? .{{0,200}})?{_DIE}", "closed"),
    _shape("divide", "oops", " [#", "divide error",
           rf"(?:Oops: )?(?:divide[ _]error|\w+ divide exception){_DIE}", "closed"),
    _shape("stack-overflow", "oops", "BUG: ", "kernel stack overflow",
           r"BUG: (?:[\w-]{1,16} )?stack guard page was hit at", "closed"),
    _shape("stack-overflow", "oops", "Insufficient stack", "kernel stack overflow",
           r"Insufficient stack space to handle exception", "deadly"),
    _shape("stack-overflow", "oops", " [#", "kernel stack overflow",
           rf"(?:Oops: )?(?:(?:VMAP )?stack guard page|kernel stack overflow.{{0,40}}){_DIE}", "closed"),
    _shape("double-fault", "oops", "PANIC: ", "double fault", r"(?:traps: )?PANIC: double fault", "closed"),
    _shape("double-fault", "oops", " [#", "double fault", rf"(?:Oops: )?double fault{_DIE}", "closed"),
    _shape("stack-segment", "oops", " [#", "stack segment fault", rf"(?:Oops: )?stack segment{_DIE}", "closed"),
    _shape("int3", "oops", " [#", "int3", rf"(?:Oops: )?int3{_DIE}", "closed"),
    _shape("bug", "oops", "BUG", "kernel BUG", rf"[kK]ernel BUG at (?:{_PLACE}!)?", "closed"),
    _shape("bug", "oops", " [#", "kernel BUG", rf"Internal error: (?:Oops - )?BUG{_DIE}", "closed"),
    _shape("bug", "oops", "[#", "kernel BUG", rf"Kernel (?:bug detected|BUG){_BARE_DIE}", "closed"),
    _shape("invalid-opcode", "oops", " [#", "invalid opcode",
           rf"(?:Oops: )?(?:invalid opcode|illegal operation){_DIE}", "closed"),
    _shape("invalid-opcode", "oops", " [#", "invalid opcode",
           rf"Internal error: (?:Oops - )?[uU]ndefined instruction{_DIE}", "closed"),
    _shape("invalid-opcode", "oops", "[#", "invalid opcode",
           rf"(?:Oops - illegal instruction|Reserved instruction in kernel code){_BARE_DIE}", "closed"),
    _shape("ubsan", "oops", "UBSAN", "UBSAN: {what}",
           rf"Internal error: (?:Oops - )?UBSAN: (?P<what>[\w ,-]{{1,60}}){_DIE}", "closed"),
    _shape("cfi", "oops", " [#", "control flow violation",
           rf"Internal error: (?:Oops - )?(?:CFI|BTI|FPAC|GCS)(?:,? \w+)?{_DIE}", "closed"),
    _shape("cfi", "oops", " [#", "control flow violation", rf"(?:Oops: )?control protection fault{_DIE}", "closed"),
    _shape("cfi", "oops", "-- BTI", "control flow violation",
           r"Unhandled 64-bit el1h sync exception .{1,120} -- BTI", "closed"),
    _shape("external-abort", "oops", "[#", "synchronous external abort",
           r"Internal error: (?:\w+ )?synchronous external abort", "closed"),
    _shape("serror", "oops", "SError", "asynchronous SError", r"SError Interrupt on CPU\d{1,5}", "deadly"),
    _shape("bad-mode", "oops", "Bad mode", "bad mode", r"Bad mode in .{1,60} handler detected", "deadly"),
    _shape("oops", "oops", " [#", "oops", rf"Internal error: [\w .,/:-]{{0,100}}{_DIE}", "closed"),
    _shape("oops", "oops", " [#", "{what}", rf"Oops: (?!Oops)(?P<what>[A-Za-z][\w ,-]{{1,60}}){_DIE}", "closed"),
    _shape("oops", "oops", "[#", "oops",
           rf"Oops(?:{_DIE}|{_BARE_DIE}|(?: -|:) [\w ,.()/:-]{{1,80}} \[#\d{{1,6}}\])", "closed"),
    # Checkers.
    _shape("kasan", "oops", "BUG: ", "BUG: KASAN: {what}",
           r"BUG: KAS[Aa][Nn]: (?P<what>[\w -]{1,80}?) (?:in|on address) ", "framed corrupts"),
    _shape("kfence", "oops", "BUG: ", "BUG: KFENCE: {what}",
           r"BUG: KFENCE: (?P<what>[\w -]{1,80}?) in ", "framed corrupts"),
    _shape("kcsan", "oops", "BUG: ", "BUG: KCSAN: {what}", r"BUG: KCSAN: (?P<what>[\w :-]{1,80}?) in ", "framed"),
    _shape("kmsan", "oops", "BUG: ", "BUG: KMSAN: {what}",
           r"BUG: KMSAN: (?P<what>[\w -]{1,80}?) in ", "framed corrupts"),
    _shape("ubsan", "warning", "UBSAN", "UBSAN: {what}",
           rf"UBSAN: (?P<what>[\w -]{{1,80}}?) in {_PLACE}", "framed"),
    _shape("slab-leak", "oops", "BUG ", "slab cache still has objects",
           r"BUG (?P<cache>[\w.:/-]{1,64})(?:\([^)]{0,64}\))? \([^)]{0,72}\): Objects remaining", "slab"),
    _shape("slab-corruption", "oops", "BUG ", "BUG {what}",
           r"BUG (?P<cache>[\w.:/-]{1,64})(?:\([^)]{0,64}\))? \((?:Not t|T)ainted[^)]{0,64}\): (?P<what>.{1,120})",
           "slab corrupts"),
    # slub named no taint until 3.3.
    _shape("slab-leak", "oops", "BUG ", "slab cache still has objects",
           r"BUG (?P<cache>[\w.:/-]{1,64}): Objects remaining", "slab"),
    _shape("slab-corruption", "oops", "BUG ", "BUG {what}",
           r"BUG (?P<cache>[\w.:/-]{1,64}): (?P<what>(?:\w{1,12} )?(?:\w{1,12} overwritten|Object already free"
           r"|Freechain corrupt|Freepointer corrupt|Invalid object pointer|Wrong object count).{0,80})",
           "slab corrupts"),
    _shape("bad-page", "oops", "BUG: ", "BUG: {what}", r"BUG: (?P<what>Bad (?:page \w{1,12}|rss-counter))", "untraced"),
    _shape("bad-page", "oops", "BUG: ", "BUG: {what}", r"BUG: (?P<what>non-zero \w{1,20})", "untraced"),
    _shape("dentry-leak", "oops", "BUG: ", "BUG: Dentry still in use",
           r"BUG: Dentry .{1,200} still in use", "untraced"),
    _shape("inode-leak", "oops", "BUG: ", "Busy inodes after unmount", r"BUG: Busy inodes after unmount", "untraced"),
    _shape("inode-leak", "warning", "VFS: ", "Busy inodes after unmount",
           r"VFS: Busy inodes after unmount", "line quiet"),
    _shape("file-count", "warning", "VFS: ", "file closed after its last reference was gone",
           r"VFS: Close: file count is (?:0|zero)", "untraced quiet"),
    # Complaints that come with a trace but without a word at their head.
    _shape("duplicate-name", "warning", "cannot create duplicate", "sysfs: cannot create duplicate filename",
           r"sysfs: cannot create duplicate filename"),
    _shape("kobject", "warning", "initialized object", "kobject: tried to init an initialized object",
           r"kobject \(.{1,40}\): tried to init an initialized object"),
    _shape("init-result", "warning", "suspiciously", "init returned a positive number",
           r"\w{1,40}: '(?P<module>[\w-]{1,64})'->init suspiciously returned -?\d{1,10}", "names", "init_module"),
    _shape("unhandled-irq", "warning", "nobody cared", "irq: nobody cared", r"irq \d{1,9}: nobody cared"),
    _shape("msr", "warning", "MSR access", "unchecked MSR access error: {what}",
           r"unchecked MSR access error: (?P<what>RDMSR|WRMSR) "),
    # Sleeping where one must not.
    _shape("sleep-in-atomic", "oops", "BUG: ", "BUG: sleeping function called from invalid context",
           r"BUG: sleeping function called from invalid context", "atomic"),
    _shape("schedule-in-atomic", "oops", "BUG: ", "BUG: scheduling while atomic",
           rf"BUG: scheduling while atomic: {_TASK}/0x", "atomic"),
    _shape("schedule-in-atomic", "oops", "the idle thread", "BUG: scheduling from the idle thread",
           r"bad: scheduling from the idle thread!", "atomic"),
    _shape("preemptible", "oops", "BUG: ", "BUG: using {what}() in preemptible code",
           rf"BUG: using (?P<what>\w{{1,40}})(?:\(\))? in preemptible(?: \[\w{{1,16}}\])? code: {_TASK}"),
    _shape("leaked-atomic", "oops", "BUG: ", "BUG: workqueue leaked a lock or atomic context",
           r"BUG: workqueue leaked", "atomic work"),
    _shape("lock-stuck", "hang", "BUG: ", "BUG: {what} suspected",
           r"BUG: (?P<what>(?:spin|rw)lock lockup) (?:suspected )?on CPU#(?P<cpu>\d{1,5})", "locks stuck"),
    _shape("lock-debug", "oops", "BUG: ", "BUG: {what}",
           r"BUG: (?P<what>(?:spinlock|rwlock|rwsem|mutex) (?:bad magic|(?:cpu[ -])?recursion"
           r"|already unlocked|wrong (?:owner|CPU)|uninitialized|trylock failure))", "locks blinds"),
    # lockdep, which falls silent after its first report.
    _shape("lockdep-circular", "warning", "WARNING: |INFO: ", "WARNING: possible circular locking dependency",
           r"(?:WARNING|\[ INFO|INFO): possible circular locking dependency", "lockdep locks blinds"),
    _shape("lockdep-recursive", "warning", "WARNING: |INFO: ", "WARNING: possible recursive locking",
           r"(?:WARNING|\[ INFO|INFO): possible recursive locking", "lockdep locks blinds"),
    _shape("lockdep-irq", "warning", "WARNING: |INFO: ", "WARNING: inconsistent lock state",
           r"(?:WARNING|\[ INFO|INFO): (?:possible irq lock inversion|.{1,60}unsafe lock order"
           r"|inconsistent lock state)", "lockdep locks blinds"),
    _shape("rcu-usage", "warning", "WARNING: |INFO: ", "WARNING: suspicious RCU usage",
           r"(?:WARNING|\[ INFO|INFO): suspicious (?:RCU|rcu_\w{1,40}\(\)) usage"),
    _shape("lockdep-unlock", "warning", "WARNING: |BUG: |INFO: ", "WARNING: {what}",
           r"(?:WARNING|\[ BUG|\[ INFO): (?P<what>bad \w{1,12} balance)", "lockdep locks blinds"),
    _shape("lockdep-freed", "warning", "WARNING: |BUG: |INFO: ", "WARNING: held lock freed",
           r"(?:WARNING|\[ BUG): held lock freed", "lockdep locks blinds"),
    _shape("lockdep-held", "warning", "WARNING: |BUG: |INFO: ", "WARNING: lock held when returning to user space",
           rf"(?:WARNING|\[ BUG): (?:lock held when returning to user space|{_TASK} still has locks held)",
           "lockdep locks blinds holds untraced"),
    _shape("lockdep-nested", "warning", "WARNING: |BUG: |INFO: ", "WARNING: nested lock was not taken",
           r"WARNING: Nested lock was not taken", "lockdep locks blinds"),
    _shape("lockdep-context", "warning", "BUG: ", "BUG: Invalid wait context",
           r"\[ BUG: Invalid wait context \]", "lockdep locks blinds atomic"),
    _shape("lockdep-key", "warning", "INFO: ", "INFO: trying to register non-static key",
           r"INFO: trying to register non-static key", "lockdep locks blinds"),
    # Hangs.
    _shape("soft-lockup", "hang", "BUG: ", "BUG: soft lockup",
           rf"{_DOG}BUG: soft lockup - CPU#(?P<cpu>\d{{1,5}}) stuck for .{{1,24}}! \[{_TASK}\]", "stuck"),
    _shape("hard-lockup", "hang", "hard LOCKUP", "hard lockup",
           rf"{_DOG}Watchdog detected hard LOCKUP on cpu (?P<cpu>\d{{1,5}})", "untraced stuck"),
    _shape("rcu-stall", "hang", "INFO: ", "INFO: RCU stall",
           r"(?:rcu: )?INFO: rcu\w{0,24} (?:self-)?detected (?:expedited )?stalls?", "untraced stuck"),
    _shape("hung-task", "hang", "INFO: ", "INFO: task hung",
           rf"INFO: task {_TASK} (?:<\w{{1,10}}> )?(?:blocked (?:in I/O wait )?|can't die )for more than", "stuck"),
    _shape("workqueue-lockup", "hang", "BUG: ", "BUG: workqueue lockup",
           r"BUG: workqueue lockup - pool", "untraced stuck"),
    _shape("csd-lock", "hang", "csd: ", "CPU does not answer a function call",
           r"smp: csd: Detected non-responsive CSD lock", "untraced stuck"),
    _shape("netdev-leak", "hang", "unregister_netdevice: ", "unregister_netdevice: waiting for a device to become free",
           r"unregister_netdevice: waiting for .{1,40} to become free", "line"),
    # Leaks that kmemleak found. `BUG: memory leak` stands at their head where a fuzzer reads debugfs.
    _shape("memory-leak", "warning", "BUG: ", "memory leak", r"BUG: memory leak$", "leak quiet"),
    _shape("memory-leak", "warning", "unreferenced object", "memory leak",
           r"(?:kmemleak: )?unreferenced object (?:\(\w{1,12}\) )?0x[0-9a-f]{1,16} \(size", "leak quiet"),
    _shape("memory-leak", "warning", "suspected memory", "memory leak",
           r"kmemleak: \d{1,9} new suspected memory leaks", "leak line quiet"),
    _shape("kmemleak", "warning", "kmemleak: ", "kmemleak: {what}",
           r"kmemleak: (?P<what>Found object by alias|Cannot insert|Trying to color|Freeing unknown object)"),
    # WARN: the message comes first, then one of these; the shape without `PID:` is 6.19's.
    _shape("warning", "warning", "WARNING: ", "WARNING",
           rf"WARNING: CPU: (?P<cpu>\d{{1,5}}) PID: (?P<pid>\d{{1,9}}) at (?:{_PLACE}|\S)", "closed"),
    _shape("warning", "warning", "WARNING: ", "WARNING",
           r"WARNING: (?:\[(?P<what>.{0,300}?)\] )?(?:(?P<file>[^\s:\[\]]{1,255}):(?P<line>\d{1,9}) )?at"
           rf" [^\s,]{{1,255}}(?: \[[^\]]{{1,120}}\])?, CPU#(?P<cpu>\d{{1,5}}): {_TASK}", "closed"),
    _shape("warning", "warning", "WARNING: ", "WARNING", rf"WARNING: at {_PLACE}(?: |$)", "closed"),
    _shape("unwinder", "warning", "WARNING: ", "WARNING: kernel stack has a bad value",
           r"WARNING: kernel stack (?:regs|frame pointer) at .{1,80} has bad ", "untraced"),
    # Panics that are a bug of their own, then all others.
    _shape("stack-protector", "panic", PANIC, "stack-protector: kernel stack is corrupted",
           r"Kernel panic - not syncing: stack-protector: ", "names"),
    _shape("stack-overflow", "panic", PANIC, "kernel stack overflow",
           r"Kernel panic - not syncing: (?:corrupted stack end detected|kernel stack overflow)"),
    _shape("panic", "panic", PANIC, "Kernel panic: {what}", rf"{PANIC}(?:: (?P<what>.{{0,200}}))?"),
    # What a module says when one of its own assertions fails: OpenZFS, Lustre, XFS, VirtualBox and others.
    _shape("assertion", "oops", "PANIC at ", "assertion failed",
           rf"PANIC at {_PLACE}:(?P<function>\w{{1,128}})\(\)", "provisional quiet names placed"),
    _shape("assertion", "oops", "PANIC at ", "assertion failed", rf"PANIC at {_PLACE}", "provisional quiet names"),
    _shape("assertion", "oops", "PANIC: ", "PANIC: {what}",
           r"PANIC: (?!double fault)(?P<what>.{1,200})", "provisional quiet"),
    _shape("assertion", "oops", "VERIFY", "assertion failed: {what}",
           r"(?:[\w.-]{1,40}: ){0,2}(?P<what>VERIFY\w{0,8} ?\(.{1,160}\)) failed", "provisional quiet"),
    _shape("assertion", "oops", "ASSERT", "assertion failed: {what}",
           rf"(?:\w{{1,40}}: )?[\d:]{{1,20}}\({_PLACE}:(?P<function>\w{{1,128}})\(\)\) "
           r"(?P<what>ASSERT\w{0,10} ?\(.{1,160}\)) failed", "provisional quiet placed"),
    _shape("assertion", "oops", "ASSERT", "assertion failed: {what}",
           r"(?:\w{1,40}: )?(?P<what>ASSERT\w{0,10} ?\(.{1,160}\)) failed", "provisional quiet"),
    _shape("assertion", "oops", "ssertion fail", "assertion failed",
           r".{0,120}?\b[aA]ssertion fail(?:ed|ure)\b", "provisional quiet"),
    # Whatever else looks like a BUG or a die() is one: the number before `[#1]` decides, or a trace.
    _shape("oops", "oops", " [#", "{what}",
           rf"(?:Oops: )?(?P<what>[A-Za-z][\w ,-]{{1,60}}){_DIE}", "closed provisional"),
    _shape("oops", "oops", "[#", "{what}",
           r"(?P<what>[A-Za-z][\w ,!-]{3,60})\[#\d{1,6}\]:$", "closed provisional"),
    _shape("oops", "oops", "Vector: ", "oops", r"cpu 0x[0-9a-f]{1,4}: Vector: [0-9a-f]{1,4} ", "provisional"),
    _shape("other", "oops", "BUG: ", "BUG: {what}", r"BUG: (?P<what>.{1,200})", "provisional"),
)
_DUMP = _shape("stack-dump", "warning", "CPU: |Pid: ", "stack dumped", _CPU_LINE, "provisional quiet")
# fmt: on

_MIDDLE = ("Call Trace:", "Call trace:", "Backtrace:", "RIP: 0010:", "PC is at ", "NIP [", "EIP is at ", "Krnl PSW :")
"""How the middle of a report begins, which is all that some have saved of it."""
_SUMMARY = re.compile(r"RIP(?:: |  \[<[0-9a-f]{8,16}>\] )[A-Za-z_][\w.]{0,127}\+0x[0-9a-f]{1,8}/0x")
"""Where the oops was, said again at its end: until 4.15."""
_BENIGN = (
    *("lockdep is turned off", "Stall ended before state dump", "took too long", "MAX_LOCKDEP", "MAX_STACK_TRACE"),
    *("MAX_LOCK_DEPTH", "DEBUG:", "replaying previous printk", "Unprivileged eBPF is enabled", "_INFO:"),
)
_REGISTERS = ("RSP: ", "RAX: ", "RDX: ", "RBP: ", "R10: ", "R13: ", "FS: ", "CS: ", "CR2: ", "DR0: ", "DR3: ", "Code: ")
"""How the lines begin that x86-64 prints of its registers."""
_CALM = ("notice", "info", "debug")


class _Row(NamedTuple):
    class_: str
    needles: tuple[str, ...]
    pattern: re.Pattern[str]
    title: str
    traits: frozenset[str]


def _message(class_: str, needles: str, title: str, pattern: str, traits: str = "") -> _Row:
    return _Row(class_, tuple(needles.split("|")), re.compile(pattern), title, frozenset(traits.split()))


MESSAGES: tuple[_Row, ...] = (
    _message("refcount", "refcount_t: ", "{what}", r"(?P<what>refcount_t: .{1,120})", "corrupts"),
    _message(
        "list-corruption",
        "corruption|double add",
        "{what} corruption",
        r"(?P<what>list_(?:add|del|add_tail)(?:_\w{1,8})?) (?:corruption|double add)",
        "corrupts deadly",
    ),
    _message(
        "list-corruption", "corruption", "{what} corruption", r"(?P<what>[sph]{0,2}list) corruption", "corrupts deadly"
    ),
    _message(
        "fortify",
        "detected ",
        "detected buffer overflow",
        r"(?:\w{1,20}: )?detected buffer overflow|detected (?:read|write) (?:beyond|of)",
        "deadly",
    ),
    _message("fortify", "detected ", "detected field-spanning write", r"\w{1,20}: detected field-spanning", "deadly"),
    # The second wording is that of 4.16 to 4.18, in a WARNING; the first was without capitals until 4.15.
    _message(
        "usercopy",
        "ernel memory ",
        "usercopy: kernel memory {what} attempt",
        r"(?:usercopy: |Bad or missing usercopy whitelist\? )[kK]ernel memory (?P<what>\w{1,20}) attempt",
        "deadly",
    ),
    _message(
        "rust-panic",
        "rust_kernel: ",
        "rust_kernel: panicked: {what}",
        r"rust_kernel: panicked at (?:'(?P<what>.{0,200})', )?(?P<file>[^\s:']{1,255}):(?P<line>\d{1,9})",
        "deadly explained",
    ),
    _message("cfi", "Missing ENDBR", "control flow violation", r"(?:traps: )?Missing ENDBR", "names"),
    _message("cfi", "CFI failure", "control flow violation", r"CFI failure at"),
    _message(
        "debug-object",
        "ODEBUG: ",
        "ODEBUG: {what}",
        r"ODEBUG: (?P<what>\w{1,20}).{0,160}object type: (?:\w{1,40})",
        "corrupts",
    ),
    _message(
        "slab-leak",
        "kmem_cache_destroy ",
        "slab cache still has objects",
        r"kmem_cache_destroy .{1,64}: Slab cache still has objects",
        "slab",
    ),
    _message(
        "preempt-imbalance",
        "initcall ",
        "init returned with {what}",
        r"initcall \S{1,255}(?: \[[^\]]{1,120}\])? returned with (?P<what>[a-z ]{1,60})",
        "atomic names",
    ),
    # 6.12 says what was overwritten before its report, and in it no more than that an object is corrupt.
    _message(
        "slab-corruption",
        " overwritten] ",
        "BUG {what}",
        r"\[(?P<what>[A-Z][\w ]{1,40} overwritten)\] 0x[0-9a-f]{1,16}",
        "slab corrupts",
    ),
    _message(
        "preempt-imbalance",
        " preempt leak",
        "timer returned with preemption imbalance",
        r"timer: \S{1,255}(?: \[[^\]]{1,120}\])? preempt leak",
        "atomic names",
    ),
    _message("lock-debug", "DEBUG_LOCKS_WARN_ON(", "lock debugging warning", r"DEBUG_LOCKS_WARN_ON\(", "locks blinds"),
    _message("bug", "_panic: text:", "{what}", r"(?:skbuff: )?(?P<what>skb_(?:over|under)_panic): text:"),
    _message(
        "duplicate-name",
        "cannot create duplicate",
        "sysfs: cannot create duplicate filename",
        r"sysfs: cannot create duplicate filename",
    ),
    _message(
        "kobject",
        "initialized object",
        "kobject: tried to init an initialized object",
        r"kobject \(.{1,40}\): tried to init an initialized",
    ),
)
"""What a check says before its BUG or WARNING; until 4.14, and without x86's trap, behind its first line."""

CHECKS = (
    Check("__fortify_", "", "fortify", "detected buffer overflow"),
    Check("fortify_panic", "lib/string_helpers.c", "fortify", "detected buffer overflow"),
    Check("usercopy_", "mm/usercopy.c", "usercopy", "usercopy: bad access of kernel memory"),
    Check("refcount_warn_saturate", "lib/refcount.c", "refcount", "refcount_t: saturated or underflown"),
    Check("__list_del_entry_valid", "", "list-corruption", "list_del corruption"),
    Check("__list_add_valid", "", "list-corruption", "list_add corruption"),
    Check("", "lib/list_debug.c", "list-corruption", "list corruption"),
    Check("debug_print_object", "lib/debugobjects.c", "debug-object", "ODEBUG"),
)


def _shortest(words: Iterable[str]) -> tuple[str, ...]:
    """Return the words that are enough to look for: each of the others has one of them in it."""
    every = sorted(set(words), key=lambda word: (len(word), word))
    return tuple(word for at, word in enumerate(every) if not any(shorter in word for shorter in every[:at]))


_NEEDLES = _shortest(needle for shape in SHAPES for needle in shape.needles)
_MESSAGE_NEEDLES = _shortest(needle for row in MESSAGES for needle in row.needles)
_ANY = _shortest((*_NEEDLES, *_MESSAGE_NEEDLES))
_ANY_LOWER = tuple(word for word in _ANY if word == word.lower())


def _has(text: str, needles: tuple[str, ...]) -> bool:
    for needle in needles:  # noqa: SIM110 any() takes twice as long, and this is done for every line
        if needle in text:
            return True
    return False


def _table_of_traits() -> dict[str, frozenset[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    rows = [(row.class_, row.traits) for row in (*SHAPES, _DUMP)] + [(row.class_, row.traits) for row in MESSAGES]
    for class_, traits in rows:
        found[class_] |= traits & CLASS_TRAITS.keys()
    return {class_: frozenset(words) for class_, words in found.items()}


_TRAITS_OF = _table_of_traits()
_CLASSES = frozenset(_TRAITS_OF) | OUTSIDE_THE_TABLE


def _named(group: dict[str, str | None], function: str | None = None) -> Frame | None:
    """Return the function that a line names without saying where in it."""
    function = group.get("function") or function
    return Frame(function, None, None, group.get("module"), reliable=True, exact=False) if function else None


def _header(shape: Shape, text: str, group: dict[str, str | None]) -> Header:
    line, pid, cpu, task = group.get("line"), group.get("pid"), group.get("cpu"), group.get("task")
    return Header(
        shape,
        steady(group.get("what") or ""),
        _named(group, shape.function) or find_symbol(text),
        group.get("file"),
        int(line) if line else None,
        task,
        int(pid) if pid else None,
        int(cpu) if cpu else None,
        group.get("module"),
    )
