"""What every task of a kernel waits for: its answer to sysrq's `t` (Documentation/admin-guide/sysrq.rst)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kmlab.kernel.crash.crash import Crash, fingerprint_of
from kmlab.kernel.crash.stack_trace import Frame, Section, parse_frames

QUESTIONS = {"t": "sysrq: Show State", "l": "sysrq: Show backtrace of all active CPUs"}
"""The keys that harm nothing, and what the kernel's answer begins with."""
BLOCKED = ("w", "sysrq: Show Blocked State")
"""The same for the tasks alone that no signal reaches: a short answer, which leaves room in the kernel's log."""
_MAX_TASKS = 4096
_MAX_FRAMES = 64


class Task(NamedTuple):
    """One task and its stack."""

    name: str
    pid: int
    state: str
    """R runs, S waits, D waits and no signal reaches it, I is a worker with nothing to do."""
    frames: tuple[Frame, ...]
    """Innermost first."""


class Waiter(NamedTuple):
    """A task that is blocked in a function of a module."""

    task: Task
    frame: Frame
    """The module's function."""
    waits_for: str
    """In words: a mutex, a thread, …"""


def parse_tasks(texts: Iterable[str]) -> list[Task]:
    """Return the tasks in the kernel's answer, in its order; what follows the last of them is left out."""
    tasks: list[Task] = []
    frames: list[Frame] | None = None
    for text in texts:
        head = _TASK.match(text)
        if head and len(tasks) < _MAX_TASKS:
            _close(tasks, frames)
            tasks.append(Task(head[1].strip(), int(head[3]), head[2], ()))
            frames = []
        elif frames is None:
            continue
        elif text.startswith(_BEHIND):
            _close(tasks, frames)
            frames = None
        else:
            _add(frames, text)
    _close(tasks, frames)
    return tasks


def tasks_in(tasks: Iterable[Task], modules: frozenset[str]) -> list[Task]:
    """Return the tasks that a hang of these modules may be about, the likeliest first.

    insmod and rmmod, of whom a module may have taken leave with a jump, so that it is not on the stack; then those with
    one of the modules on their stack.
    """
    loaders = [t for t in tasks if t.name in LOADERS]
    within = [t for t in tasks if any(f.reliable and f.module in modules for f in t.frames)]
    first = [t for t in loaders if t in within]
    return [*first, *(t for t in loaders if t not in first), *(t for t in within if t not in first)]


def parse_cpus(texts: Iterable[str]) -> list[tuple[Frame, ...]]:
    """Return the stack of each CPU that is not idle, in the kernel's answer to sysrq's `l`."""
    stacks: list[list[Frame]] = []
    reading = False
    for text in texts:
        if text.startswith(_CPU):
            stacks.append([])
            reading = True
        elif text.startswith(_BEHIND):
            reading = False
        elif reading:
            _add(stacks[-1], text)
    return [tuple(stack) for stack in stacks if stack]


def find_waiters(tasks: Iterable[Task], own: frozenset[str]) -> list[Waiter]:
    """Return the tasks that wait in a function of these modules for good; who loads or unloads comes first."""
    waiters = [waiter for task in tasks if task.state == "D" and (waiter := _waiter(task, own))]
    return sorted(waiters, key=lambda waiter: waiter.task.name not in LOADERS)


def find_deadlock(tasks: Iterable[Task], own: frozenset[str]) -> Crash | None:
    """Return the hang of tasks that wait in two functions of these modules, one of them for a lock; else None."""
    waiters = find_waiters(tasks, own)
    first = next(iter(waiters), None)
    others = [waiter for waiter in waiters[1:] if first and waiter.frame.name != first.frame.name]
    if first is None or not others or not any(waiter.waits_for in _LOCKS for waiter in (first, *others)):
        return None
    return _told(first, others)


def lasting_deadlock(before: Iterable[Task], after: Iterable[Task], own: frozenset[str]) -> Crash | None:
    """Return the deadlock of tasks that wait in the same places in both answers; None if there is none."""
    waited = {(waiter.task.pid, waiter.frame) for waiter in find_waiters(before, own)}
    still = [waiter.task for waiter in find_waiters(after, own) if (waiter.task.pid, waiter.frame) in waited]
    return find_deadlock(still, own)


def describe(waiters: Sequence[Waiter]) -> str:
    """Who waits for what, in one line: the cycle, where there are two."""
    said = [f"{waiter.task.name} waits for {waiter.waits_for} in {waiter.frame.name}" for waiter in waiters]
    return ", ".join(said[:-1]) + (" and " if said[1:] else "") + said[-1] if said else ""


_WAITS = (
    (("mutex_lock", "ww_mutex_lock", "rt_mutex_lock"), "a mutex"),
    (("down_read", "down_write", "rwsem_down", "percpu_down"), "a read-write semaphore"),
    (("down",), "a semaphore"),
    (("kthread_stop",), "a thread to end"),
    (("flush_work", "flush_delayed_work", "cancel_work", "cancel_delayed_work", "drain_workqueue"), "work to end"),
    (("timer_delete_sync", "del_timer_sync", "hrtimer_cancel"), "a timer to end"),
    (("synchronize_rcu", "synchronize_srcu", "rcu_barrier"), "RCU readers to end"),
    (("wait_for_completion", "wait_for_common"), "a completion"),
)
"""How the function begins that a module called, and what its caller waits for; the outermost of several counts."""
_LOCKS = ("a mutex", "a read-write semaphore", "a semaphore")


_CPU = "NMI backtrace for cpu"
_TASK = re.compile(r"task:(.{1,64}?) +state:([A-Z]) .{0,40}?pid: ?(\d{1,9})\b")
_BEHIND = ("Showing ", "Sched Debug", "sysrq: ", "BUG: ", "INFO: ", "Sending NMI")
LOADERS = ("insmod", "rmmod", "modprobe")


def _add(frames: list[Frame], text: str) -> None:
    """Add the frames that a line shows, bar what is no return address."""
    frames += [frame for frame in parse_frames(text) if frame.offset is not None]
    del frames[_MAX_FRAMES:]


def _close(tasks: list[Task], frames: list[Frame] | None) -> None:
    if tasks and frames:
        tasks[-1] = tasks[-1]._replace(frames=tuple(frames))


def _waiter(task: Task, own: frozenset[str]) -> Waiter | None:
    called: str | None = None
    for frame in task.frames:
        if not frame.reliable:
            continue
        if frame.module in own:
            return Waiter(task, frame, called) if called else None
        name = frame.name.lstrip("_")
        called = next((words for starts, words in _WAITS if name.startswith(starts)), called)
    return None


def _section(task: Task) -> Section:
    return Section(f"task {task.name}", task.frames, task.name, task.pid)


def _told(first: Waiter, others: Sequence[Waiter]) -> Crash:
    names = list(dict.fromkeys([first.frame.name, *(waiter.frame.name for waiter in others)]))
    title = f"deadlock in {', '.join(names[:-1])} and {names[-1]}"
    return Crash(
        kind="hang",
        class_="deadlock",
        title=title,
        function=first.frame.name,
        module=first.frame.module,
        file=first.frame.file,
        line=first.frame.line,
        task=first.task.name,
        pid=first.task.pid,
        cpu=None,
        frames=first.task.frames,
        sections=tuple(_section(waiter.task) for waiter in others),
        text=describe([first, *others]),
        fatal=False,
        truncated=False,
        fingerprint=fingerprint_of("hang", first.frame.module or "", *sorted(names)),
        time=None,
    )
