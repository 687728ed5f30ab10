"""The lines that begin a stack within a report: what its task did, who and when that was.

A kind of stack is one row of the table, with the file of the kernel that prints it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kmlab.kernel.crash.stack_trace import Frame, Section, find_symbol

NAMELESS = ("call trace", "stack backtrace", "backtrace")


class Beginning(NamedTuple):
    """How a stack begins."""

    name: str
    pid: int | None = None
    cpu: int | None = None
    age: int | None = None
    """Jiffies before the report."""
    time: float | None = None
    """Seconds since boot."""
    first: Frame | None = None
    """The first frame, if the line has it."""
    rivals: bool = False
    """It is the stack of one of several CPUs or tasks, all of which may be what the report is about."""
    races: bool = False
    """It is the stack of one of two accesses that race."""

    def section(self, frames: tuple[Frame, ...]) -> Section:
        return Section(self.name, frames, None, self.pid, self.cpu, self.age, self.time)


def find_beginning(text: str) -> Beginning | None:
    """Return how a stack begins, if the line begins one."""
    found = _BEGINNING.match(text)
    if found is None:
        return None
    if lock := found["lock"]:
        return Beginning(f"#{found['depth']} {lock}")
    if cpu := found["cpu"]:
        return Beginning(f"cpu {cpu}", cpu=int(cpu), rivals=True)
    if access := found["access"]:
        return _dated(Beginning(access.lower(), rivals=True, races=True), text)
    if found["pool"]:
        return _dated(Beginning("allocated"), text)
    name = found[0].strip(": .").removeprefix("INFO: ").lower()
    if found["task"]:
        return Beginning(name, rivals=True)
    if name.endswith((" in", " by task")):
        first = _tracked(text) if name.endswith(" in") else None
        return _dated(Beginning(name.removesuffix(" in").removesuffix(" by task"), first=first), text)
    return Beginning(name)


def at_address(address: str) -> Frame:
    """Return the frame of a return address that has no name."""
    return Frame(address, None, None, None, reliable=True, exact=False)


def _dated(begin: Beginning, text: str) -> Beginning:
    """Return it with what the line says of who and when."""
    pid, cpu, age, time = (pattern.search(text) for pattern in (_PID, _CPU, _AGE, _TIME))
    return begin._replace(
        pid=int(pid[1]) if pid else None,
        cpu=int(cpu[1]) if cpu else None,
        age=int(age[1]) if age else None,
        time=float(time[1]) if time else None,
    )


def _tracked(text: str) -> Frame | None:
    """Return the place that slub's line names in which an object was allocated or freed."""
    first, raw = find_symbol(text), _TRACKED.search(text)
    return first._replace(exact=False) if first else at_address(raw[1]) if raw else None


_BEGINNINGS = (
    r"Call [Tt]race|stack backtrace|[Bb]acktrace",
    # mm/kasan/report.c, mm/kfence/report.c
    r"(?:Allocated|Freed|allocated|freed|rcu freeing) by task",
    r"(?:Last|Second to last) potentially related work creation",
    # Until 5.17 KFENCE said who allocated an object where it described it.
    r"(?P<pool>kfence-#\d{1,9} \[0x.{1,160}\] allocated by task)",
    r"kfence-#\d{1,9}(?=:)",
    # mm/slub.c; until 5.13 with `INFO: `
    r"(?:INFO: )?(?:Allocated|Freed) in (?=\S)",
    # mm/page_owner.c, mm/kmsan/report.c
    r"Uninit was (?:stored to memory|created) at|page last (?:allocated|free)",
    # kernel/locking/lockdep.c
    r"the existing dependency chain|Preemption disabled at|\{[\w -]{1,40}\} state was registered at",
    r"\.\.\. which became [\w-]{1,40} at",
    r"-> #(?P<depth>\d{1,3}) \((?P<lock>[^{}\n]{1,120}?)\)\{[^}\n]{1,20}\}",
    r"\.\.\. acquired at|(?:INITIAL|(?:IN-)?(?:HARD|SOFT)IRQ-(?:ON-)?[RW])[\w -]{0,24} at(?=:)",
    # lib/nmi_backtrace.c, kernel/sched/core.c, kernel/kcsan/report.c
    r"NMI backtrace for cpu (?P<cpu>\d{1,5})|(?P<task>task:\S{1,64})",
    r"(?:race at unknown origin, with )?(?P<access>(?:read|write|read-write|assert no writes|assert no accesses)"
    r"(?: \([\w, ]{1,24}\))?) to 0x[0-9a-f]{1,16} of \d{1,9} bytes",
    # kernel/rcu/tree_stall.h, arch/s390/kernel/dumpstack.c
    r"(?:rcu: )?RCU grace-period kthread stack dump|Last Breaking-Event-Address",
)
_BEGINNING = re.compile(rf"\s{{0,12}}(?:{'|'.join(_BEGINNINGS)})")
_TRACKED = re.compile(r"(?:Allocated|Freed) in (0x[0-9a-f]{9,16})\s")
_PID = re.compile(r"(?:by task |pid=)(\d{1,9})")
_CPU = re.compile(r"(?:on cpu |cpu=)(\d{1,5})")
_AGE = re.compile(r" age=(\d{1,20})")
_TIME = re.compile(r" at (\d{1,9}\.\d{6})s")
