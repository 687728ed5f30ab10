"""Let the kernel check all objects of its slab caches while the module is loaded, so that its functions have names."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from kmlab.kernel.detectors.detectors import VALIDATE_SLABS
from kmlab.run.context import guest_commands
from kmlab.run.context.in_guest import run_in_guest
from kmlab.run.context.results import CheckStepResult, Results
from kmlab.run.context.run_context import RunContext


def check_slabs(context: RunContext, so_far: Results) -> Sequence[CheckStepResult]:
    """Validate the slab caches: the kernel reports damaged objects on the console (Documentation/mm/slub.rst)."""
    if not so_far.has_detector("slab") or not context.usable:
        return ()
    with context.step("validate") as timer:
        command = functools.partial(guest_commands.check, context.guest, VALIDATE_SLABS)
        _, facts = run_in_guest(context, so_far, timer, command, context.step_patience)
    return [timer.result(CheckStepResult, **facts)]
