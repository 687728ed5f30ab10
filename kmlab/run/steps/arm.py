"""Switch on the detectors of the guest's kernel, as the last thing before the module is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from kmlab.kernel.detectors.detectors import READ_SLABS, arm_line, find_detectors
from kmlab.run.context.results import ArmStepResult, Results
from kmlab.run.context.run_context import STATE_PATIENCE, RunContext


def arm(context: RunContext, so_far: Results) -> Sequence[ArmStepResult]:
    """Switch the detectors on. In a guest that ran modules before, note what those left allocated."""
    if not so_far.build.ok or "load" not in context.options.steps:
        return ()
    detectors = find_detectors(so_far.baseline.names)
    if not detectors:
        return ()
    line = arm_line(detectors)
    if line:
        context.guest.run(line, context.deadline(STATE_PATIENCE))
    traces = ""
    if not so_far.baseline.unused and any(detector.name == "slab" for detector in detectors):
        traces = context.guest.run(READ_SLABS, context.deadline(STATE_PATIENCE)).text
    return [ArmStepResult("arm", detectors=detectors, slab_traces=traces, shown=False)]
