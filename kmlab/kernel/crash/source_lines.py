"""A finding with its places: file and line of every frame of a module that we have, and whose line it is."""

from __future__ import annotations

import dataclasses
import itertools
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.stack_trace import Frame
from kmlab.kernel.crash.unloaded_module import Sections, left_behind
from kmlab.kernel.symbols.elf import MalformedModule
from kmlab.kernel.symbols.symbolizer import Location, ModuleSymbols


def symbols_of(images: Mapping[str, bytes], folder: PurePosixPath | None) -> dict[str, ModuleSymbols]:
    """Return the symbols of each .ko by its path; what was read of it for one finding is there for the next."""
    return {path: ModuleSymbols(image, path, folder) for path, image in images.items()}


def located(
    crash: Crash,
    images: Mapping[str, bytes | ModuleSymbols],
    folder: PurePosixPath | None,
    sections: Sections | None = None,
) -> Crash:
    """Return the same finding with file and line of every frame in a module of these, inlined frames expanded.

    `sections` are where those that were loaded had their sections, for what they may have left behind.

    The guilty function is then the innermost one that the module's author wrote, be it inlined, or left for good by a
    jump that the kernel's trace knows nothing of. Whose bytes contradict themselves has no lines.
    """
    given = {
        path: ModuleSymbols(image, path, folder) if isinstance(image, bytes) else image
        for path, image in images.items()
    }
    symbols = {PurePosixPath(path).stem.replace("-", "_"): known for path, known in given.items()}
    while True:
        try:
            return _located(crash, symbols, folder, sections or {})
        except MalformedModule as error:
            left = {name: known for name, known in symbols.items() if not known.is_blamed(error)}
            # Without any it cannot be raised.
            symbols = left if len(left) < len(symbols) else {}


def _located(
    crash: Crash, symbols: Mapping[str, ModuleSymbols], folder: PurePosixPath | None, sections: Sections
) -> Crash:
    found = left_behind(crash, symbols, sections)
    if found is not crash:
        return found
    entered = None if any(f.reliable and f.module in symbols for f in crash.frames) else _entered(crash, symbols)
    if entered:
        crash = dataclasses.replace(crash, module=entered[1][-1].module)
    stacks = _unfolded(crash.frames, symbols, entered)
    beside = [_unfolded(section.frames, symbols) for section in crash.sections]
    crash = dataclasses.replace(
        crash,
        frames=_flat(stacks),
        sections=tuple(s._replace(frames=_flat(found)) for s, found in zip(crash.sections, beside, strict=True)),
    )
    own = symbols.get(crash.module or "")
    if own is None:
        return crash
    # Where the main stack has nothing of the author's, as that of a check, the others have.
    guilty = next(filter(None, (_guilty(crash, found) for found in (stacks, *beside))), None)
    guilty = guilty or _begins(crash, own)
    if guilty is None:
        return dataclasses.replace(crash, file=_relative(crash.file, folder) if crash.file else None)
    title = _renamed(crash.title, crash.function, guilty.name)
    return dataclasses.replace(crash, file=guilty.file, line=guilty.line, function=guilty.name, title=title)


def seen_from(crash: Crash, below: str) -> Crash:
    """Return the finding with the paths of the author's files as seen from a folder below the one they start from."""
    if below == ".":
        return crash

    def seen(frame: Frame) -> Frame:
        own = frame.own and frame.file and not frame.file.startswith("/")
        return frame._replace(file=posixpath.relpath(frame.file or "", below)) if own else frame

    mine = {frame.file for frame in crash.frames if frame.own}
    mine |= {frame.file for section in crash.sections for frame in section.frames if frame.own}
    file = posixpath.relpath(crash.file, below) if crash.file and crash.file in mine else crash.file
    sections = tuple(section._replace(frames=tuple(map(seen, section.frames))) for section in crash.sections)
    return dataclasses.replace(crash, file=file, frames=tuple(map(seen, crash.frames)), sections=sections)


def innermost(stack: Sequence[Frame]) -> Frame | None:
    """Of one place's functions, inlined ones first, the innermost that is not a kernel header's."""
    return next((f for f in stack if f.file and f.own), None)


def placed(frame: Frame, place: Location) -> Frame:
    """Return the frame with its place in the source."""
    return frame._replace(
        function=place.function, file=place.file, line=place.line, inlined=place.inlined, own=place.own
    )


def _unfolded(
    frames: Sequence[Frame],
    symbols: Mapping[str, ModuleSymbols],
    entered: tuple[Frame, list[Frame]] | None = None,
) -> list[list[Frame]]:
    """Each frame of a stack as the functions at its place, with those before it that left no frame."""
    stacks: list[list[Frame]] = []
    inner: str | None = None
    for frame in frames:
        known = symbols.get(frame.module or "")
        if entered and frame is entered[0]:
            stacks.append(entered[1])
        stack = _places(frame, known) if known else [frame]
        if known and frame.reliable and not frame.exact and frame.offset is not None:
            stack = [*_jumped(frame, known, inner), *stack]
        stacks.append(stack)
        inner = frame.function if frame.reliable else inner
    return stacks


def _flat(stacks: Sequence[Sequence[Frame]]) -> tuple[Frame, ...]:
    return tuple(frame for stack in stacks for frame in stack)


def _places(frame: Frame, known: ModuleSymbols) -> list[Frame]:
    if frame.offset is None:
        return [frame]  # whoever symbolised the log knew its place
    places = known.locate(frame.function, frame.offset or 0, frame.size, frame.exact)
    return [placed(frame, place) for place in places] or [frame]


def _jumped(frame: Frame, known: ModuleSymbols, inner: str | None) -> list[Frame]:
    return _lost(known.lost_frames(frame.function, frame.offset or 0, frame.size, inner), frame.module)


def _lost(places: Sequence[Location], module: str | None) -> list[Frame]:
    return [placed(Frame(p.function, None, None, module, reliable=True, exact=False), p) for p in places]


_ENTRIES = {
    "do_one_initcall": "init_module",
    "__do_sys_delete_module": "cleanup_module",
    "__se_sys_delete_module": "cleanup_module",
    "__x64_sys_delete_module": "cleanup_module",
}
"""Functions of the kernel's that call a module, and what they call in it (kernel/module/main.c)."""
_CALLERS = re.compile(
    r"process_one_work|call_timer_fn|__run_timers|__hrtimer_run_queues|kthread|rcu_do_batch|rcu_core|tasklet_action_common"
    r"|irq_work_\w+|_{0,2}flush_smp_call_function_queue|notifier_call_chain|__handle_irq_event_percpu|seq_read\w*"
    r"|vfs_\w+|new_sync_\w+|do_dentry_open|__(?:x64|se|do)_sys_\w+|__fput|proc_\w+|pde_\w+|kernfs_\w+|sysfs_\w+|\w+_attr_\w+"
    r"|parse_args|full_proxy_\w+|debugfs_\w+|misc_open|chrdev_open|mmap_region|__do_fault|do_s?(?:elect|poll|ys_poll)"
    r"|dev_hard_start_xmit|nf_hook_slow|platform_\w+|really_probe|driver_\w+|bus_\w+|device_\w+|kobject_\w+"
)
"""Those that call what a module has given them: its work, its timer, its operations on a file."""
_NOT_IN_EXIT = re.compile(r"free_module|async_|blocking_notifier|try_stop_module|_*mutex_|klp_|ftrace_|store_uevent")
"""What else the kernel calls there."""


def _entered(crash: Crash, symbols: Mapping[str, ModuleSymbols]) -> tuple[Frame, list[Frame]] | None:
    """Return a function of the module that left no frame because it ended in a jump, after the frame of its caller."""
    reliable = [frame for frame in crash.frames if frame.reliable]
    for inner, frame in itertools.pairwise(reliable):
        if inner.module or _NOT_IN_EXIT.match(inner.name):
            continue
        entry = _ENTRIES.get(frame.name)
        if not entry and not _CALLERS.fullmatch(frame.name):
            continue
        found = [
            (name, known.lost_entry(entry, inner.function) if entry else known.lost_callback(inner.function))
            for name, known in symbols.items()
        ]
        found = [(name, places) for name, places in found if places]
        if entry or found:
            return (frame, _lost(found[0][1], found[0][0])) if len(found) == 1 else None
    return None


def _guilty(crash: Crash, stacks: Sequence[Sequence[Frame]]) -> Frame | None:
    """From the frame that the kernel's own words blame outwards, the first function of the author's."""
    mine = [s for s in stacks if s[-1].module == crash.module]
    if crash.class_ == "stack-overflow" and len(mine) > 1 and mine[0][-1].function == mine[1][-1].function:
        mine = mine[1:]  # who calls itself for ever is to blame for the call, not for where the stack came to its end
    # A trace that lost its way has guesses alone.
    for own in ([s for s in mine if s[-1].reliable], mine):
        first = next((i for i, s in enumerate(own) if any(f.name == crash.function for f in s)), 0)
        found = next((found for s in own[first:] if (found := innermost(s))), None)
        if found:
            return found
    return None


def _begins(crash: Crash, known: ModuleSymbols) -> Frame | None:
    """Return the beginning of a function that the kernel named without saying where in it, as that of a work item."""
    if crash.function is None or crash.file:
        return None
    places = known.locate(crash.function, 0, None, exact=True)
    return _lost(places[-1:], crash.module)[0] if places and places[-1].file else None


def _renamed(title: str, known: str | None, name: str) -> str:
    before, found, after = title.rpartition(f" in {known}")
    return f"{before} in {name}{after}" if found and after[:1] in ("", ":") else title


def _relative(path: str, folder: PurePosixPath | None) -> str:
    place = PurePosixPath(path)
    return str(place.relative_to(folder)) if folder and place.is_relative_to(folder) else path
