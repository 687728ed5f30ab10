"""Find what a module registered and did not take back, after it is unloaded.

The kernel does not say which module made a file or a device. What is new since the load, and of a kind that the module
makes, is the module's own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

from kmlab.kernel.crash.crash import Crash, fingerprint
from kmlab.kernel.crash.stack_trace import Frame
from kmlab.kernel.detectors.leaks import CodeRange

LEFT_BEHIND = "left-behind"
"""The class of these findings."""
READ_THREADS = "grep -s -H -E '^\\[<0>\\] 0x[0-9a-f]+$' /proc/[0-9]*/stack; grep -s -H '' /proc/[0-9]*/comm"
"""A line for the guest's shell, as root: frames of tasks that have no name any more, and the names of all tasks."""
_MOST = 8
"""Findings of one run."""


class _Kind(NamedTuple):
    """One kind of name in NAMES (kernel/module/users.py), and who makes such names."""

    pattern: str
    makers: str
    """The kernel's functions through which a module makes them."""
    remedy: str


_KINDS = (
    _Kind(r"/proc/[^/]+", r"_?proc_(create|mkdir|symlink|net)\w*|register_sysctl\w*", "call remove_proc_entry()"),
    _Kind(r"/sys/kernel/debug/[^/]+", r"debugfs_create_\w+", "call debugfs_remove()"),
    _Kind(
        r"character \d+", r"__register_chrdev|alloc_chrdev_region|register_chrdev_region", "unregister its major number"
    ),
    _Kind(r"block \d+", r"__register_blkdev|register_blkdev", "call unregister_blkdev()"),
    _Kind(
        r"/sys/dev/char/\d+:\d+",
        r"misc_register|cdev_(device_)?add|device_create\w*|device_(add|register)",
        "remove it",
    ),
    _Kind(r"/sys/dev/block/\d+:\d+", r"device_add_disk|__?add_disk", "call del_gendisk()"),
    _Kind(r"fs [\w.-]+", r"register_filesystem", "call unregister_filesystem()"),
)
_SHOWN = {"character": "character device number", "block": "block device number", "fs": "file system type"}
_FRAME = re.compile(r"/proc/(?P<pid>\d{1,9})/stack:\[<0>\] 0x(?P<address>[0-9a-f]{8,16})")
_COMM = re.compile(r"/proc/(?P<pid>\d{1,9})/comm:(?P<name>.{0,15})")


def can_leave(imports: Collection[str]) -> bool:
    """Return whether a module with these imports makes names, or starts threads."""
    return any(re.fullmatch(kind.makers, name) for kind in _KINDS for name in imports) or bool(
        {"kthread_create_on_node", "kthread_create_on_cpu", "kthread_create_worker"} & set(imports)
    )


def find_names(module: str, imports: Collection[str], before: frozenset[str], after: frozenset[str]) -> list[Crash]:
    """Return a finding for each name that the module has left."""
    found = []
    for name in sorted(after - before):
        kind = next((kind for kind in _KINDS if re.fullmatch(kind.pattern, name)), None)
        if kind and any(re.fullmatch(kind.makers, each) for each in imports):
            found.append(_finding(module, f"{_described(name)} is still there after the unload", kind.remedy))
    return found[:_MOST]


def find_threads(text: str, ranges: Iterable[CodeRange]) -> list[Crash]:
    """Return a finding for each task that still runs in code that was the module's."""
    places = list(ranges)
    names = {match["pid"]: match["name"] for match in _COMM.finditer(text)}
    inside: dict[str, list[tuple[CodeRange, int]]] = {}
    for match in _FRAME.finditer(text):
        address = int(match["address"], 16)
        inside.setdefault(match["pid"], []).extend(
            (place, address) for place in places if place.begin <= address < place.end
        )
    return [_thread(pid, names.get(pid, "?"), frames) for pid, frames in inside.items() if frames][:_MOST]


def _thread(pid: str, name: str, frames: list[tuple[CodeRange, int]]) -> Crash:
    module = frames[0][0].module
    stack = tuple(Frame(f"0x{address:x}", None, None, None, reliable=True, exact=False) for _, address in frames)
    words = f"task {name} still runs in its code after the unload"
    found = _finding(module, words, "stop the thread, with kthread_stop()")
    return replace(found, frames=stack, task=name, pid=int(pid))


def _described(name: str) -> str:
    kind, _, rest = name.partition(" ")
    return f"{_SHOWN[kind]} {rest}" if kind in _SHOWN else name


def _finding(module: str, words: str, remedy: str) -> Crash:
    title = f"left behind: {words}"
    return Crash(
        kind="warning",
        class_=LEFT_BEHIND,
        title=title,
        function=None,
        module=module,
        file=None,
        line=None,
        task=None,
        pid=None,
        cpu=None,
        frames=(),
        sections=(),
        text=title,
        fatal=False,
        truncated=False,
        fingerprint=fingerprint(LEFT_BEHIND, re.sub(r"\d+", "N", title), None, ()),
        time=None,
        reason=remedy,
    )
