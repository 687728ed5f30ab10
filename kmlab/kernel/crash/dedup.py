"""Which of two findings is the other's consequence, or its other name: one bug is told once."""

from __future__ import annotations

from dataclasses import replace

from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.patterns import is_corruption

_SOON = 2.0
"""Seconds within which a crash is the work of the corruption that was found before it."""
_ATOMIC = ("leaked-atomic", "sleep-in-atomic", "schedule-in-atomic", "lockdep-context", "preempt-imbalance")
_WORSE = ("warning", "oops", "hang", "panic")


def belongs(first: Crash, later: Crash) -> bool:
    """Whether the later of two findings of one boot is the first one's consequence, or its other name."""
    same_task = first.pid is not None and first.pid == later.pid
    # A victim names no module; one that names another has a bug of its own.
    no_other_module = later.module is None or later.module == first.module
    soon = first.time is None or later.time is None or later.time - first.time < _SOON
    if first.deadly and same_task:
        return True
    if first.deadly and later.deadly and soon and first.cpu is not None and first.cpu == later.cpu:
        return first.module is not None and later.module is None  # it died with a lock held, or in a probe
    if later.kind == "hang" or later.class_ in _HANGS:
        if first.kind == "hang" or first.class_ in _HANGS:
            return no_other_module or first.module is None
        return no_other_module and (first.deadly or first.class_.startswith("lock"))
    if is_corruption(first.class_) and later.deadly:
        return same_task and soon
    if first.class_ in _ATOMIC and later.class_ in _ATOMIC:
        return first.function == later.function or (same_task and (no_other_module or first.module is None))
    if later.class_ == "slab-leak" and first.class_ in ("slab-leak", "slab-corruption"):
        return no_other_module  # objects that were found damaged are never freed
    if first.class_ == later.class_ == "memory-leak":
        return first.function is None or later.function is None
    return first.class_ == later.class_ == "fortify" and same_task and soon


_HANGS = (
    "soft-lockup",
    "hard-lockup",
    "rcu-stall",
    "hung-task",
    "workqueue-lockup",
    "csd-lock",
    "lock-stuck",
)


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
    return replace(base, kind="panic" if fatal else kind, fatal=fatal)
