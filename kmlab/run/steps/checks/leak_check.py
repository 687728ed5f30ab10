"""Find memory that the module allocated and that is still allocated after the unload."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence

from kmlab.kernel.detectors.detectors import (
    READ_ALLOCATIONS,
    READ_KMEMLEAK,
    READ_SLABS,
    READ_VMALLOC,
    SCAN_KMEMLEAK,
    disarm_line,
)
from kmlab.kernel.detectors.leaks import (
    CodeRange,
    Leak,
    code_ranges,
    format_reports,
    new_leaks,
    object_of,
    parse_allocations,
    parse_kmemleak,
    parse_slab_traces,
    parse_vmalloc_areas,
    split_reports,
)
from kmlab.kernel.symbols.elf import MalformedModule, read_object
from kmlab.kernel.symbols.symbolizer import ModuleSymbols
from kmlab.run.context.results import ArmStepResult, CheckStepResult, LoadStepResult, Results
from kmlab.run.context.run_context import RunContext

_PATIENCE = 60.0
"""Seconds for one list of the kernel, or one scan of its memory."""
_FREED_LATER = 1.0
"""Seconds for memory that is freed after the unload: by RCU, by a work item."""
_MIN_AGE = 5.2
"""Seconds after the last allocation until kmemleak reports an object (MSECS_MIN_AGE in mm/kmemleak.c)."""


def check_leaks(context: RunContext, so_far: Results) -> Sequence[CheckStepResult]:
    """Ask the kernel's detectors what is left of the modules, if they are unloaded again or did not load."""
    if not so_far.detectors or not context.usable:
        return ()
    found: list[str] = []
    with context.step("leaks") as timer:
        if not so_far.left_loaded:
            found = _find(context, so_far)
        if line := disarm_line(so_far.detectors):
            context.guest.run(line, context.deadline(_PATIENCE))
    return [timer.result(CheckStepResult, reports=tuple(found))]


def _find(context: RunContext, so_far: Results) -> list[str]:
    if so_far.has_detector("allocations"):
        tried = [step for step in so_far.all(LoadStepResult) if step.outcome != "skipped"]
        return find_allocations(context, so_far) if tried else []
    ranges = ranges_of_modules(so_far)
    if not ranges or not so_far.loaded:
        return []
    return _kept(context, so_far, ranges) or _lost(context, so_far, ranges)


def find_allocations(context: RunContext, so_far: Results) -> list[str]:
    """Return reports of what the build's modules have allocated and is still allocated; none may be loaded.

    What a function of the kernel allocated for it may be the kernel's own by now: then only kmemleak can tell.
    """
    symbols = {info.name: ModuleSymbols(so_far.build.images[path], info.name) for path, info in so_far.build.modules}
    reports = _list_allocated(context, symbols)
    if not reports or context.console.over.wait(_FREED_LATER):
        return []
    before = {object_of(report) for report in reports}
    own, other = split_reports([r for r in _list_allocated(context, symbols) if object_of(r) in before], ())
    if own or not other:
        return own
    lost = _scan(context, so_far)
    return [report for report in other if f"{object_of(report)}\n" in lost]


def _list_allocated(context: RunContext, symbols: Mapping[str, ModuleSymbols]) -> list[str]:
    words = " ".join(name for name in symbols if re.fullmatch(r"[\w-]{1,55}", name))
    line = READ_ALLOCATIONS.replace("{modules}", words)
    return parse_allocations(context.guest.run(line, context.deadline(_PATIENCE)).text, symbols)


def _kept(context: RunContext, so_far: Results, ranges: Sequence[CodeRange]) -> list[str]:
    """Return what the kernel lists as allocated by the module, now and a little later, when the rest is freed."""
    if not so_far.has_detector("slab"):
        return []
    before = parse_slab_traces(next(iter(so_far.all(ArmStepResult))).slab_traces, ranges)
    leaks = new_leaks(before, _listed(context, ranges))
    if leaks and not context.console.over.wait(_FREED_LATER):
        later = new_leaks(before, _listed(context, ranges))
        leaks = [leak for leak in later if any(leak.address == other.address for other in leaks)]
    return format_reports(leaks)


def _listed(context: RunContext, ranges: Sequence[CodeRange]) -> list[Leak]:
    slabs = context.guest.run(READ_SLABS, context.deadline(_PATIENCE)).text
    areas = context.guest.run(READ_VMALLOC, context.deadline(_PATIENCE)).text
    return [*parse_slab_traces(slabs, ranges), *parse_vmalloc_areas(areas, ranges)]


def _lost(context: RunContext, so_far: Results, ranges: Sequence[CodeRange]) -> list[str]:
    """Return reports of the memory that code in these ranges has allocated and to which no pointer exists any more."""
    return parse_kmemleak(_scan(context, so_far), ranges)


def _scan(context: RunContext, so_far: Results) -> str:
    """Return kmemleak's reports of the memory to which no pointer exists any more, after the second of two scans.

    An object is only reported if its content is the same in both (mm/kmemleak.c, kmemleak_scan()).
    """
    if not so_far.has_detector("kmemleak") or context.console.over.wait(_MIN_AGE):
        return ""
    return context.guest.run(f"{SCAN_KMEMLEAK}; {SCAN_KMEMLEAK}; {READ_KMEMLEAK}", context.deadline(_PATIENCE)).text


def ranges_of_modules(so_far: Results) -> list[CodeRange]:
    """Return where the code of the run's modules was."""
    sizes: dict[str, dict[str, int]] = {}
    for path, info in so_far.build.modules:
        with contextlib.suppress(MalformedModule):  # a build may write anything
            image = read_object(so_far.build.images[path], info.name)
            sizes[info.name] = {section.name: section.size for section in image.sections}
    return code_ranges(so_far.sections, sizes)
