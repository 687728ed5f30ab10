"""Tasks that wait for each other in a module's functions, out of what every task waits for (kernel/locking/)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kmlab.kernel.crash.crash import Crash, fingerprint_of
from kmlab.kernel.crash.stack_trace import Frame, Section
from kmlab.kernel.crash.tasks import LOADERS, Task


class Waiter(NamedTuple):
    """A task that is blocked in a function of a module."""

    task: Task
    frame: Frame
    """The module's function."""
    waits_for: str
    """In words: a mutex, a thread, …"""


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


def find_waiters(tasks: Iterable[Task], own: frozenset[str]) -> list[Waiter]:
    """The tasks that wait in a function of these modules for good; who loads or unloads comes first."""
    waiters = [waiter for task in tasks if task.state == "D" and (waiter := _waiter(task, own))]
    return sorted(waiters, key=lambda waiter: waiter.task.name not in LOADERS)


def find_deadlock(tasks: Iterable[Task], own: frozenset[str]) -> Crash | None:
    """The hang of tasks that wait in two functions of these modules, one of them for a lock; None if there is none."""
    waiters = find_waiters(tasks, own)
    first = next(iter(waiters), None)
    others = [waiter for waiter in waiters[1:] if first and waiter.frame.name != first.frame.name]
    if first is None or not others or not any(waiter.waits_for in _LOCKS for waiter in (first, *others)):
        return None
    return _told(first, others)


def describe(waiters: Sequence[Waiter]) -> str:
    """Who waits for what, in one line: the cycle, where there are two."""
    said = [f"{waiter.task.name} waits for {waiter.waits_for} in {waiter.frame.name}" for waiter in waiters]
    return ", ".join(said[:-1]) + (" and " if said[1:] else "") + said[-1] if said else ""


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
        sections=tuple(Section(f"task {waiter.task.name}", waiter.task.frames) for waiter in others),
        text=describe([first, *others]),
        fatal=False,
        truncated=False,
        fingerprint=fingerprint_of("hang", first.frame.module or "", *sorted(names)),
        time=None,
    )
