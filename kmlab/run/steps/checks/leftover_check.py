"""Find what the modules registered and did not take back: files, devices, file systems, threads."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.module.leftovers import READ_THREADS, can_leave, find_names, find_threads
from kmlab.kernel.module.users import NAMES, parse_names
from kmlab.kernel.symbols.elf import MalformedModule, read_object
from kmlab.run.context.results import CheckStepResult, Results
from kmlab.run.context.run_context import STATE_PATIENCE, RunContext
from kmlab.run.steps.checks.leak_check import ranges_of_modules


def check_leftovers(context: RunContext, so_far: Results) -> Sequence[CheckStepResult]:
    """Compare the guest's names with those before the load, if all modules are unloaded again.

    Modules of the kernel that stayed loaded may have made new names themselves: then nothing can be said.
    """
    done = so_far.loaded and not so_far.left_loaded and not so_far.left_dependencies
    if not done or not context.usable or not _may_leave(so_far):
        return ()
    with context.step("leftovers") as timer:
        found = find_leftovers(context, so_far)
    return [timer.result(CheckStepResult, findings=tuple(found))]


def find_leftovers(context: RunContext, so_far: Results) -> list[Crash]:
    """Return a finding for each name and each task that is left; no module of the build may be loaded."""
    before = so_far.baseline.names
    if before is None or not _may_leave(so_far):
        return []
    deadline = context.deadline(STATE_PATIENCE)
    after = parse_names(context.guest.run(NAMES, deadline).text)
    found = find_threads(context.guest.run(READ_THREADS, deadline).text, ranges_of_modules(so_far))
    # A name that several of the modules may have made is reported once.
    return [*found, *find_names(so_far.build.modules[-1][1].name, _all_imports(so_far), before, after)]


def _may_leave(so_far: Results) -> bool:
    return so_far.baseline.names is not None and can_leave(_all_imports(so_far))


def _all_imports(so_far: Results) -> frozenset[str]:
    return frozenset().union(*(_imports(so_far, path, info.name) for path, info in so_far.build.modules))


def _imports(so_far: Results, path: str, name: str) -> frozenset[str]:
    """Return the kernel's functions that a module uses."""
    with contextlib.suppress(MalformedModule):  # a build may write anything
        symbols = read_object(so_far.build.images[path], name).symbols
        return frozenset(symbol.name for symbol in symbols if not symbol.section)
    return frozenset()
