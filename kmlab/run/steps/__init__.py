"""List the steps of a run, in order. To add one: write a file with a function like these, and name it in STEPS.

A step gets the run's context and the results of the steps before it, and returns its own results: one for itself or one
for each module, none if it has nothing to do. A check runs before or after unload. Settle is the last step: it
reads the kernel's final state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kmlab.run.context.results import Results, StepResult
from kmlab.run.context.run_context import RunContext
from kmlab.run.steps.arm import arm
from kmlab.run.steps.baseline import record_baseline
from kmlab.run.steps.build import build
from kmlab.run.steps.checks.bound_step import probe, probe_again
from kmlab.run.steps.checks.kunit_results import read_kunit_results
from kmlab.run.steps.checks.leak_check import check_leaks
from kmlab.run.steps.checks.leftover_check import check_leftovers
from kmlab.run.steps.checks.line_counts_step import read_line_counts
from kmlab.run.steps.checks.slab_check import check_slabs
from kmlab.run.steps.collect import collect
from kmlab.run.steps.exercise import exercise
from kmlab.run.steps.load import load
from kmlab.run.steps.settle import settle
from kmlab.run.steps.sign import sign
from kmlab.run.steps.software_devices import load_software_devices
from kmlab.run.steps.sync import sync
from kmlab.run.steps.torture import torture
from kmlab.run.steps.unload import unload

StepFunction = Callable[[RunContext, Results], Sequence[StepResult]]

STEPS: tuple[StepFunction, ...] = (
    *(sync, record_baseline, build, sign),
    *(load_software_devices, arm, load, probe, exercise, probe_again, read_kunit_results, collect),
    *(check_slabs, unload, check_leaks, check_leftovers, read_line_counts),
    settle,
)
TORTURE_STEPS: tuple[StepFunction, ...] = (
    *(sync, record_baseline, build, sign),
    *(load_software_devices, arm, torture, read_line_counts, settle),
)
"""The steps of `kmlab torture`: its cases load and unload the module themselves."""


def run_steps(context: RunContext) -> Results:
    """Run all steps while the guest lives."""
    results = Results()
    for step in TORTURE_STEPS if context.options.torture else STEPS:
        if not results.alive or context.console.panicked:
            break
        results = results.plus(step(context, results))
    return results
