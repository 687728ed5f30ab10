"""Which of two findings is the other's consequence, or its other name: one bug is one finding."""

from __future__ import annotations

from dataclasses import replace

from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.stack_trace import Frame, Section

_SOON = 2.0
"""Seconds within which a crash is the work of the corruption that was found before it."""
_AT_ONCE = 1.0
"""Seconds within which one task runs into one bug twice in the same call."""
_WORSE = ("warning", "oops", "hang", "panic")


def belongs(first: Crash, later: Crash) -> bool:
    """Whether the later of two findings of one boot is the first one's consequence, or its other name."""
    same_task = first.pid is not None and first.pid == later.pid
    # A victim names no module; one that names another has a bug of its own.
    no_other_module = later.module is None or later.module == first.module
    soon = first.time is None or later.time is None or later.time - first.time < _SOON
    first_traits, later_traits = first.traits, later.traits
    if first.deadly and same_task:
        return True
    if first.deadly and later.deadly and soon and first.cpu is not None and first.cpu == later.cpu:
        return first.module is not None and later.module is None  # it died with a lock held, or in a probe
    if later.kind == "hang" or "stuck" in later_traits:
        if first.kind == "hang" or "stuck" in first_traits:
            return no_other_module or first.module is None
        return no_other_module and (first.deadly or "locks" in first_traits)
    if same_task and _in_one_call(first, later):
        return True
    at_once = first.time is None or later.time is None or later.time - first.time < _AT_ONCE
    if later.deadly and at_once and _same_function(first, later):
        # A WARNING of what then kills, and two CPUs that fall into one hole.
        return same_task or first.pid is None or bool(first_traits & {"corrupts", "deadly"})
    if "corrupts" in first_traits and later.deadly:
        return same_task and soon
    if "lockdep" in first_traits and "corrupts" in later_traits:
        return same_task and soon  # the lock was freed, or never was one
    if later.class_ == "warning" and soon and _is_of_a_report(later):
        return "framed" in first_traits or "stuck" in first_traits
    if first.class_ in ("rcu-usage", "warning") and "atomic" in later_traits:
        # rcu_sleep_check() and rcu_note_context_switch() report first who sleeps under rcu_read_lock().
        return same_task and at_once and any(words in first.text for words in _SLEEPS_IN_RCU)
    if first.class_ == "debug-object" and "lockdep" in later_traits:
        return same_task and soon and any(map(_is_of_debug_objects, later.frames))
    if same_task and at_once and "holds" in first_traits | later_traits:
        # What is held when the kernel is left is in the way of the next thing that the task does.
        held, other = (first, later) if "holds" in first_traits else (later, first)
        return other.class_ != "lockdep-held" and _comes_of_what_is_held(held, other)
    if "atomic" in first_traits and "atomic" in later_traits:
        return first.function == later.function or (same_task and (no_other_module or first.module is None))
    if later.class_ == "slab-leak" and "slab" in first_traits:
        return no_other_module  # objects that were found damaged are never freed
    if "leak" in first_traits and "leak" in later_traits:
        return first.function is None or later.function is None
    if first.class_ == "dentry-leak" and later.class_ == "warning":
        # The kernel names each dentry, then warns that there are any.
        return soon and any(frame.name == "umount_check" for frame in later.frames)
    if first.class_ == later.class_ and at_once and not later.frames and later.truncated:
        return later.file is None or (first.file, first.line) == (later.file, later.line)
    return first.class_ == later.class_ == "fortify" and same_task and soon


def _is_of_debug_objects(frame: Frame) -> bool:
    """Whether DEBUG_OBJECTS mends there what it found: a timer is stopped whose memory has gone."""
    return frame.reliable and frame.name.lstrip("_").startswith(("debug_check_no_obj_freed", "debug_object_"))


def _comes_of_what_is_held(held: Crash, other: Crash) -> bool:
    """Whether the kernel only stumbled over the lock, or the RCU reader, that a task has not left."""
    if "atomic" in other.traits or other.class_ == "rcu-usage":
        return other.module in (None, held.module)
    names = {frame.name for frame in other.frames if frame.reliable}
    return other.class_ == "warning" and bool(names & _LEAVING)


def _in_one_call(first: Crash, later: Crash) -> bool:
    """Whether two checks complain of the same call: one place in the code, at once."""
    if first.time is not None and later.time is not None and later.time - first.time > _AT_ONCE:
        return False
    places = [_place(crash) for crash in (first, later)]
    return places[0] is not None and places[0] == places[1]


def _place(crash: Crash) -> tuple[str, int | None] | None:
    """Return the function to blame and the offset in it."""
    found = next(
        (f for f in crash.frames if f.reliable and f.name == crash.function and f.module == crash.module), None
    )
    return (found.function, found.offset) if found and found.offset is not None else None


def _same_function(first: Crash, later: Crash) -> bool:
    return first.function is not None and (first.function, first.module) == (later.function, later.module)


def _is_of_a_report(crash: Crash) -> bool:
    """Whether the kernel stumbled while it told of another bug."""
    return any(frame.reliable and frame.name in _REPORTING for frame in crash.frames[1:])


_SLEEPS_IN_RCU = ("Illegal context switch", "context switch within RCU read-side critical section")
_LEAVING = frozenset(
    {
        *("rcu_note_context_switch", "exit_to_user_mode_prepare", "exit_to_user_mode_loop", "lockdep_sys_exit"),
        *("syscall_exit_to_user_mode", "syscall_exit_to_user_mode_prepare", "prepare_exit_to_usermode"),
    }
)
"""Functions that check a task which leaves the kernel, or the CPU."""
_REPORTING = frozenset(
    {
        *("kmsan_report", "kasan_report", "kcsan_report", "print_report", "kfence_report_error", "watchdog_timer_fn"),
        *("rcu_sched_clock_irq", "rcu_check_callbacks", "check_cpu_stall", "print_cpu_stall", "print_other_cpu_stall"),
    }
)
"""Functions of the kernel's that look for a bug, or tell of one."""


def merged(first: Crash, later: Crash) -> Crash:
    """One finding out of two names of one bug: the first, bar what the later knows better."""
    fatal = first.fatal or later.fatal
    kind = max(first.kind, later.kind, key=_WORSE.index)
    if first.deadly and kind == "hang":
        kind = first.kind
    base = first
    nameless = first.kind == "hang" and first.module is None and later.module is not None
    if nameless or (first.truncated and not later.truncated and first.fingerprint == later.fingerprint):
        base = replace(later, time=first.time)
    elif first.class_ == "memory-leak" and first.function is None:
        base = later
    elif first.class_ == "kmemleak" and "corrupts" in later.traits:
        base = replace(later, time=first.time)  # kmemleak misses the object that KASAN knows more of
    elif later.class_ != first.class_ == "warning" or (
        later.deadly and first.kind == "warning" and "locks" not in first.traits
    ):
        base = replace(later, time=first.time)  # a WARNING says less than what it warned of
    if base is first and not first.frames and later.function:
        # It said what is wrong, and the other who did it.
        base = replace(
            later, class_=first.class_, title=f"{first.title} in {later.function}", text=first.text, time=first.time
        )
    if first.class_ == later.class_ == "hung-task" and later.function and later.function != first.function:
        # Tasks that wait for each other: both places belong to the bug.
        base = base.beside(Section(f"task {later.task}", later.frames, later.task, later.pid, later.cpu))
    return replace(base, kind="panic" if fatal else kind, fatal=fatal)
