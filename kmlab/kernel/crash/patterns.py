"""The first line of every kind of report that a kernel makes, as one table (lib/bug.c, arch/*/mm/fault.c)."""

from __future__ import annotations

import re
from typing import NamedTuple

from kmlab.kernel.crash.stack_trace import Frame, find_symbol


class Shape(NamedTuple):
    """One kind of report."""

    class_: str
    kind: str
    """The outcome it means where no panic follows: oops, warning, hang or panic."""
    needle: str
    """What any line of this shape contains: looked for before the pattern, which costs more."""
    pattern: re.Pattern[str]
    """Matched at the line's start; the groups are what the line itself tells."""
    title: str
    """`{what}` is that group; ` in FUNCTION` is added where one is known."""
    ends: bool = False
    """The report closes with `---[ end trace`; without it we do not have all of it."""
    traced: bool = True
    """The report has a stack trace."""
    names: bool = False
    """The symbol in the first line is the culprit, whatever the trace says."""


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


def find_header(text: str) -> Header | None:
    """The report that this line begins, or None."""
    for trigger in _TRIGGERS:
        if trigger in text:
            break
    else:
        return None
    for benign in _BENIGN:
        if benign in text:
            return None
    for shape in SHAPES:
        if shape.needle in text:
            found = shape.pattern.match(text)
            if found:
                return _header(shape, text, found.groupdict())
    return None


def find_prelude(text: str) -> tuple[str, str] | None:
    """Class and title of a message that some check prints before its BUG or WARNING, or None."""
    for needle in _PRELUDE_NEEDLES:
        if needle in text:
            break
    else:
        return None
    for class_, pattern, title in PRELUDES:
        found = pattern.match(text)
        if found:
            return class_, title.format(what=steady(found.groupdict().get("what") or ""))
    return None


def checked_by(function: str) -> tuple[str, str] | None:
    """Class and title of the check that this function of the kernel's makes, where its message was lost."""
    return next((named for name, named in _CHECKS if function.startswith(name)), None)


def kinds_and_classes() -> frozenset[str]:
    """Every word that a finding may be called by."""
    classes = {shape.class_ for shape in SHAPES} | {class_ for class_, _, _ in PRELUDES} | OUTSIDE_THE_TABLE
    return frozenset(classes | {shape.kind for shape in SHAPES})


def steady(text: str) -> str:
    """`text` without what differs from one run to the next: addresses, numbers, process ids."""
    text = _HEX.sub("ADDR", text)
    text = _NUMBER.sub("N", text)
    return " ".join(text.split())[:160].rstrip(" .:!,")


def is_deadly(class_: str) -> bool:
    """Whether the task that ran into this was killed, so that all it does later is fallout."""
    return class_ in _DEADLY


def is_corruption(class_: str) -> bool:
    """Whether memory was found in a state that makes a crash soon after its mere consequence."""
    return class_ in {
        "kasan",
        "kfence",
        "slab-corruption",
        "list-corruption",
        "kmsan",
        "refcount",
        "debug-object",
    }


CUT_HERE = "[ cut here ]"
OUTSIDE_THE_TABLE = frozenset({"silent", "unexpected-reboot"})
"""Classes of findings that no line of the log begins: CPUs that say nothing, and a kernel that begins anew."""
PANIC = "Kernel panic - not syncing"

_HEX = re.compile(r"\b0x[0-9a-fA-F]+|\b(?=[a-f]*\d)[0-9a-f]{8,}\b|\(____ptrval____\)|\b[a-f]{12,}\b")
_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w])")


def _shape(class_: str, kind: str, needle: str, title: str, pattern: str, **more: bool) -> Shape:
    return Shape(class_, kind, needle, re.compile(pattern), title, **more)


_DOG = r"(?:\w{1,20} ?\w{0,20}: ){0,2}"
_END = r"(?::|,|\s|$)"
# The number is the error code, which no panic, WARNING or log line of a driver has before a `[#1]`.
_DIE = r": (?:0x)?[0-9a-f]{1,16} \[#\d{1,6}\]"

# fmt: off
SHAPES: tuple[Shape, ...] = (
    # Oopses. arm64 words them its own way and the titles agree, for the bug is the same.
    _shape("null-dereference", "oops", "NULL pointer", "BUG: kernel NULL pointer dereference",
           r"(?:BUG: )?(?:[uU]nable to handle )?kernel NULL pointer dereference", ends=True),
    _shape("page-fault", "oops", "nable to handle", "BUG: unable to handle page fault",
           r"(?:BUG: unable to handle (?:page fault|kernel paging request)"
           r"|Unable to handle kernel (?:paging request|access to|write to|execute from"
           r"|read from))", ends=True),
    _shape("gpf", "oops", "general protection", "general protection fault",
           rf"(?:Oops: )?general protection fault(?:,.{{0,200}})?{_DIE}", ends=True),
    _shape("divide", "oops", "divide", "divide error", rf"(?:Oops: )?divide[ _]error{_DIE}", ends=True),
    _shape("stack-overflow", "oops", "stack", "kernel stack overflow",
           r"BUG: (?:[\w-]{1,16} )?stack guard page was hit at", ends=True),
    _shape("stack-overflow", "oops", "stack", "kernel stack overflow",
           r"Insufficient stack space to handle exception"),
    _shape("stack-overflow", "oops", "stack", "kernel stack overflow",
           rf"(?:Oops: )?(?:(?:VMAP )?stack guard page|kernel stack overflow.{{0,40}}){_DIE}", ends=True),
    _shape("double-fault", "oops", "double fault", "double fault",
           r"(?:traps: )?PANIC: double fault", ends=True),
    _shape("double-fault", "oops", "double fault", "double fault",
           rf"(?:Oops: )?double fault{_DIE}", ends=True),
    _shape("stack-segment", "oops", "stack segment", "stack segment fault",
           rf"(?:Oops: )?stack segment{_DIE}", ends=True),
    _shape("int3", "oops", "int3", "int3", rf"(?:Oops: )?int3{_DIE}", ends=True),
    _shape("bug", "oops", "BUG at", "kernel BUG",
           r"[kK]ernel BUG at (?:(?P<file>[^\s:]{1,255}):(?P<line>\d{1,9})!)?", ends=True),
    _shape("bug", "oops", "BUG", "kernel BUG", rf"Internal error: (?:Oops - )?BUG{_DIE}", ends=True),
    _shape("invalid-opcode", "oops", "invalid opcode", "invalid opcode",
           rf"(?:Oops: )?invalid opcode{_DIE}", ends=True),
    _shape("invalid-opcode", "oops", "ndefined instruction", "invalid opcode",
           rf"Internal error: (?:Oops - )?[uU]ndefined instruction{_DIE}", ends=True),
    _shape("ubsan", "oops", "UBSAN", "UBSAN: {what}",
           rf"Internal error: (?:Oops - )?UBSAN: (?P<what>[\w ,-]{{1,60}}){_DIE}", ends=True),
    _shape("cfi", "oops", "Internal error", "control flow violation",
           rf"Internal error: (?:Oops - )?(?:CFI|BTI|FPAC)(?:,? \w+)?{_DIE}", ends=True),
    _shape("cfi", "oops", "control protection", "control flow violation",
           rf"(?:Oops: )?control protection fault{_DIE}", ends=True),
    _shape("external-abort", "oops", "external abort", "synchronous external abort",
           r"Internal error: (?:\w+ )?synchronous external abort", ends=True),
    _shape("serror", "oops", "SError", "asynchronous SError", r"SError Interrupt on CPU\d{1,5}"),
    _shape("bad-mode", "oops", "Bad mode", "bad mode", r"Bad mode in .{1,60} handler detected"),
    _shape("oops", "oops", "Internal error", "oops", rf"Internal error: [\w .,/-]{{1,100}}{_DIE}", ends=True),
    _shape("oops", "oops", " [#", "oops", rf"Oops{_DIE}", ends=True),
    # Checkers.
    _shape("kasan", "oops", "KASAN", "BUG: KASAN: {what}", r"BUG: KASAN: (?P<what>[\w -]{1,80}?) in "),
    _shape("kfence", "oops", "KFENCE", "BUG: KFENCE: {what}", r"BUG: KFENCE: (?P<what>[\w -]{1,80}?) in "),
    _shape("kcsan", "oops", "KCSAN", "BUG: KCSAN: {what}", r"BUG: KCSAN: (?P<what>[\w :-]{1,80}?) in "),
    _shape("kmsan", "oops", "KMSAN", "BUG: KMSAN: {what}", r"BUG: KMSAN: (?P<what>[\w -]{1,80}?) in "),
    _shape("ubsan", "warning", "UBSAN", "UBSAN: {what}",
           r"UBSAN: (?P<what>[\w -]{1,80}?) in (?P<file>[^\s:]{1,255}):(?P<line>\d{1,9})"),
    _shape("slab-leak", "oops", "Objects remaining", "slab cache still has objects",
           r"BUG (?P<cache>[\w.:/-]{1,64})(?:\([^)]{0,64}\))? \([^)]{0,72}\): Objects remaining"),
    _shape("slab-corruption", "oops", "BUG ", "BUG {what}",
           r"BUG (?P<cache>[\w.:/-]{1,64})(?:\([^)]{0,64}\))? \((?:Not t"
           r"|T)ainted[^)]{0,64}\): (?P<what>.{1,120})"),
    _shape("bad-page", "oops", "BUG: Bad", "BUG: {what}",
           r"BUG: (?P<what>Bad (?:page \w{1,12}|rss-counter))", traced=False),
    _shape("bad-page", "oops", "BUG: non-zero", "BUG: {what}",
           r"BUG: (?P<what>non-zero \w{1,20})", traced=False),
    _shape("dentry-leak", "oops", "still in use", "BUG: Dentry still in use",
           r"BUG: Dentry .{1,200} still in use", traced=False),
    _shape("inode-leak", "oops", "Busy inodes", "Busy inodes after unmount",
           r"BUG: Busy inodes after unmount", traced=False),
    _shape("inode-leak", "warning", "Busy inodes", "Busy inodes after unmount",
           r"VFS: Busy inodes after unmount", traced=False),
    # Complaints that come with a trace but without a word at their head.
    _shape("duplicate-name", "warning", "cannot create duplicate", "sysfs: cannot create duplicate filename",
           r"sysfs: cannot create duplicate filename"),
    _shape("kobject", "warning", "initialized object", "kobject: tried to init an initialized object",
           r"kobject \(.{1,40}\): tried to init an initialized object"),
    _shape("unhandled-irq", "warning", "nobody cared", "irq: nobody cared", r"irq \d{1,9}: nobody cared"),
    _shape("msr", "warning", "MSR access", "unchecked MSR access error: {what}",
           r"unchecked MSR access error: (?P<what>RDMSR|WRMSR) "),
    # Sleeping where one must not.
    _shape("sleep-in-atomic", "oops", "sleeping function",
           "BUG: sleeping function called from invalid context",
           r"BUG: sleeping function called from invalid context"),
    _shape("schedule-in-atomic", "oops", "while atomic", "BUG: scheduling while atomic",
           r"BUG: scheduling while atomic: (?P<task>.{1,64})/(?P<pid>\d{1,9})/0x"),
    _shape("preemptible", "oops", "in preemptible", "BUG: using {what}() in preemptible code",
           r"BUG: using (?P<what>\w{1,40})(?:\(\))? in preemptible(?: \[\w{1,16}\])? code: "
           r"(?P<task>.{1,64})/(?P<pid>\d{1,9})"),
    _shape("leaked-atomic", "oops", "leaked", "BUG: workqueue leaked a lock or atomic context",
           r"BUG: workqueue leaked"),
    _shape("lock-stuck", "hang", "lockup suspected", "BUG: {what} suspected",
           r"BUG: (?P<what>(?:spin|rw)lock lockup) suspected on CPU#(?P<cpu>\d{1,5})"),
    _shape("lock-debug", "oops", "BUG: ", "BUG: {what}",
           r"BUG: (?P<what>(?:spinlock|rwlock|rwsem|mutex) (?:bad magic|(?:cpu[ -])?recursion"
           r"|already unlocked|wrong (?:owner|CPU)"
           r"|uninitialized|trylock failure))"),
    # lockdep, which falls silent after its first report.
    _shape("lockdep-circular", "warning", "circular locking", "WARNING: possible circular locking dependency",
           r"(?:WARNING|\[ INFO|INFO): possible circular locking dependency"),
    _shape("lockdep-recursive", "warning", "recursive locking", "WARNING: possible recursive locking",
           r"(?:WARNING|\[ INFO|INFO): possible recursive locking"),
    _shape("lockdep-irq", "warning", "lock", "WARNING: inconsistent lock state",
           r"(?:WARNING|\[ INFO|INFO): (?:possible irq lock inversion|.{1,60}unsafe lock order"
           r"|inconsistent lock state)"),
    _shape("rcu-usage", "warning", "suspicious RCU", "WARNING: suspicious RCU usage",
           r"(?:WARNING|\[ INFO|INFO): suspicious RCU usage"),
    _shape("lockdep-unlock", "warning", "balance", "WARNING: {what}",
           r"(?:WARNING|\[ BUG|\[ INFO): (?P<what>bad \w{1,12} balance)"),
    _shape("lockdep-freed", "warning", "held lock freed", "WARNING: held lock freed",
           r"(?:WARNING|\[ BUG): held lock freed"),
    _shape("lockdep-held", "warning", "lock", "WARNING: lock held when returning to user space",
           r"(?:WARNING|\[ BUG): (?:lock held when returning to user space"
           r"|(?P<task>.{1,64})/(?P<pid>\d{1,9}) still has locks held)"),
    _shape("lockdep-nested", "warning", "Nested lock", "WARNING: nested lock was not taken",
           r"WARNING: Nested lock was not taken"),
    _shape("lockdep-context", "warning", "wait context", "BUG: Invalid wait context",
           r"\[ BUG: Invalid wait context \]"),
    _shape("lockdep-key", "warning", "non-static key", "INFO: trying to register non-static key",
           r"INFO: trying to register non-static key"),
    # Hangs.
    _shape("soft-lockup", "hang", "soft lockup", "BUG: soft lockup",
           rf"{_DOG}BUG: soft lockup - CPU#(?P<cpu>\d{{1,5}}) stuck for .{{1,24}}! \[(?P<task>.{{1,64}}):"
           rf"(?P<pid>\d{{1,9}})\]"),
    _shape("hard-lockup", "hang", "hard LOCKUP", "hard lockup",
           rf"{_DOG}Watchdog detected hard LOCKUP on cpu (?P<cpu>\d{{1,5}})", traced=False),
    _shape("rcu-stall", "hang", "INFO: rcu", "INFO: RCU stall",
           r"(?:rcu: )?INFO: rcu\w{0,24} (?:self-)?detected (?:expedited )?stalls?", traced=False),
    _shape("hung-task", "hang", "INFO: task", "INFO: task hung",
           r"INFO: task (?P<task>.{1,64}):(?P<pid>\d{1,9}) (?:<\w{1,10}> )?blocked (?:in I/O wait )?for"
           r" more than"),
    _shape("workqueue-lockup", "hang", "workqueue lockup", "BUG: workqueue lockup",
           r"BUG: workqueue lockup - pool", traced=False),
    _shape("csd-lock", "hang", "csd: ", "CPU does not answer a function call",
           r"smp: csd: Detected non-responsive CSD lock", traced=False),
    _shape("netdev-leak", "hang", "unregister_netdevice",
           "unregister_netdevice: waiting for a device to become free",
           r"unregister_netdevice: waiting for .{1,40} to become free", traced=False),
    # Leaks that kmemleak found.
    _shape("memory-leak", "warning", "unreferenced object", "memory leak",
           r"(?:kmemleak: )?unreferenced object 0x[0-9a-f]{1,16} \(size"),
    _shape("memory-leak", "warning", "suspected memory", "memory leak",
           r"kmemleak: \d{1,9} new suspected memory leaks", traced=False),
    # WARN: the message comes first, then one of these; the shape without `PID:` is 6.19's.
    _shape("warning", "warning", "WARNING: CPU", "WARNING",
           r"WARNING: CPU: (?P<cpu>\d{1,5}) PID: (?P<pid>\d{1,9}) at (?:(?P<file>[^\s:]{1,255}):"
           r"(?P<line>\d{1,9})|\S)", ends=True),
    _shape("warning", "warning", ", CPU#", "WARNING",
           r"WARNING: (?:\[(?P<what>.{0,300}?)\] )?(?:(?P<file>[^\s:\[\]]{1,255}):(?P<line>\d{1,9}) )?at"
           r" [^\s,]{1,255}(?: \[[^\]]{1,120}\])?"
           r", CPU#(?P<cpu>\d{1,5}): (?P<task>.{1,64})/(?P<pid>\d{1,9})", ends=True),
    _shape("warning", "warning", "WARNING: at", "WARNING",
           r"WARNING: at (?P<file>[^\s:]{1,255}):(?P<line>\d{1,9}) ", ends=True),
    # Panics that are a bug of their own, then all others.
    _shape("stack-protector", "panic", "stack-protector", "stack-protector: kernel stack is corrupted",
           r"Kernel panic - not syncing: stack-protector: ", names=True),
    _shape("stack-overflow", "panic", "stack end", "kernel stack overflow",
           r"Kernel panic - not syncing: corrupted stack end detected"),
    _shape("panic", "panic", PANIC, "Kernel panic: {what}", rf"{PANIC}(?:: (?P<what>.{{0,200}}))?"),
    # Whatever else looks like a BUG or a die() is one if it brings a trace.
    _shape("other", "oops", " [#", "{what}",
           rf"(?:Oops: )?(?P<what>[A-Za-z][\w ,-]{{1,60}}){_DIE}", ends=True),
    _shape("other", "oops", "BUG: ", "BUG: {what}", r"BUG: (?P<what>.{1,200})"),
)
# fmt: on

_TRIGGERS = (
    *(
        "BUG",
        "WARNING: ",
        "INFO: ",
        "UBSAN",
        PANIC,
        " [#",
        "Unable to handle",
        "PANIC: ",
        "LOCKUP",
        "Busy inodes",
    ),
    *(
        "unreferenced object",
        "suspected memory",
        "unregister_netdevice: ",
        "Insufficient stack",
        "csd: ",
        "Bad mode",
        "SError",
    ),
    *("cannot create duplicate", "initialized object", "nobody cared", "MSR access"),
)
_BENIGN = (
    *(
        "lockdep is turned off",
        "Stall ended before state dump",
        "took too long",
        "MAX_LOCKDEP",
        "MAX_STACK_TRACE",
    ),
    *("MAX_LOCK_DEPTH", "DEBUG:", "replaying previous printk", "Unprivileged eBPF is enabled"),
)

_DEADLY = (
    frozenset(s.class_ for s in SHAPES if s.ends and s.kind == "oops")
    | {"serror", "bad-mode", "list-corruption"}
    | {
        *("fortify", "usercopy", "rust-panic"),
    }
)

PRELUDES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("refcount", re.compile(r"(?P<what>refcount_t: .{1,120})"), "{what}"),
    (
        "list-corruption",
        re.compile(r"(?P<what>list_(?:add|del|add_tail)(?:_\w{1,8})?) (?:corruption|double add)"),
        "{what} corruption",
    ),
    ("list-corruption", re.compile(r"(?P<what>[sph]{0,2}list) corruption"), "{what} corruption"),
    (
        "fortify",
        re.compile(r"(?:\w{1,20}: )?detected buffer overflow|detected (?:read|write) (?:beyond|of)"),
        "detected buffer overflow",
    ),
    ("fortify", re.compile(r"\w{1,20}: detected field-spanning"), "detected field-spanning write"),
    (
        "usercopy",
        re.compile(r"usercopy: Kernel memory (?P<what>\w{1,20}) attempt"),
        "usercopy: kernel memory {what} attempt",
    ),
    ("rust-panic", re.compile(r"rust_kernel: panicked"), "rust_kernel: panicked"),
    ("cfi", re.compile(r"(?:traps: )?Missing ENDBR|CFI failure at"), "control flow violation"),
    (
        "debug-object",
        re.compile(r"ODEBUG: (?P<what>\w{1,20}).{0,160}object type: (?:\w{1,40})"),
        "ODEBUG: {what}",
    ),
    (
        "slab-leak",
        re.compile(r"kmem_cache_destroy .{1,64}: Slab cache still has objects"),
        "slab cache still has objects",
    ),
    (
        "preempt-imbalance",
        re.compile(r"initcall \S{1,255}(?: \[[^\]]{1,120}\])? returned with (?P<what>[a-z ]{1,60})"),
        "init returned with {what}",
    ),
    # 6.12 says what was overwritten before its report, and in it no more than that an object is corrupt.
    (
        "slab-corruption",
        re.compile(r"\[(?P<what>[A-Z][\w ]{1,40} overwritten)\] 0x[0-9a-f]{1,16}"),
        "BUG {what}",
    ),
    (
        "preempt-imbalance",
        re.compile(r"timer: \S{1,255}(?: \[[^\]]{1,120}\])? preempt leak"),
        "timer returned with preemption imbalance",
    ),
    ("lock-debug", re.compile(r"DEBUG_LOCKS_WARN_ON\("), "lock debugging warning"),
)
_CHECKS = (
    ("__fortify_", ("fortify", "detected buffer overflow")),
    ("fortify_panic", ("fortify", "detected buffer overflow")),
    ("usercopy_abort", ("usercopy", "usercopy: bad access of kernel memory")),
    ("refcount_warn_saturate", ("refcount", "refcount_t: saturated or underflown")),
    ("__list_del_entry_valid", ("list-corruption", "list_del corruption")),
    ("__list_add_valid", ("list-corruption", "list_add corruption")),
)
_PRELUDE_NEEDLES = (
    *(
        "refcount_t",
        "corruption",
        "double add",
        "detected ",
        "usercopy",
        "rust_kernel",
        "ENDBR",
        "CFI failure",
        "ODEBUG",
    ),
    *("kmem_cache_destroy", "DEBUG_LOCKS", "initcall ", " overwritten] ", " preempt leak"),
)


def _header(shape: Shape, text: str, group: dict[str, str | None]) -> Header:
    line, pid, cpu, task = group.get("line"), group.get("pid"), group.get("cpu"), group.get("task")
    return Header(
        shape,
        steady(group.get("what") or ""),
        find_symbol(text),
        group.get("file"),
        int(line) if line else None,
        task,
        int(pid) if pid else None,
        int(cpu) if cpu else None,
    )
