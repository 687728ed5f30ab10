"""What every task of a kernel waits for: its answer to sysrq's `t` (Documentation/admin-guide/sysrq.rst)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from kmlab.kernel.crash.stack_trace import Frame, parse_frames

QUESTIONS = {"t": "sysrq: Show State", "l": "sysrq: Show backtrace of all active CPUs"}
"""The keys that harm nothing, and what the kernel's answer begins with."""
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


def parse_tasks(texts: Iterable[str]) -> list[Task]:
    """The tasks in the kernel's answer, in its order; what follows the last of them is left out."""
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
    """The tasks that a hang of these modules may be about, the likeliest first.

    insmod and rmmod, of whom a module may have taken leave with a jump, so that it is not on the stack; then those with
    one of the modules on their stack.
    """
    loaders = [t for t in tasks if t.name in LOADERS]
    within = [t for t in tasks if any(f.reliable and f.module in modules for f in t.frames)]
    first = [t for t in loaders if t in within]
    return [*first, *(t for t in loaders if t not in first), *(t for t in within if t not in first)]


def parse_cpus(texts: Iterable[str]) -> list[tuple[Frame, ...]]:
    """The stack of each CPU that is not idle, in the kernel's answer to sysrq's `l`."""
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
