"""Read which lines of the module ran, if the run asks for it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from kmlab.kernel.module.line_counts import READ_GCOV, parse_line_counts
from kmlab.run.context.results import LineCountsStepResult, Results
from kmlab.run.context.run_context import RunContext

_PATIENCE = 60.0
"""Seconds for gcov to read all object files of a module."""


def read_line_counts(context: RunContext, so_far: Results) -> Sequence[LineCountsStepResult]:
    """Read the kernel's counters of the module. They outlive the module, until the guest is restored."""
    if not context.options.coverage or not so_far.build.ok or not context.usable:
        return ()
    with context.step("coverage") as timer:
        line = READ_GCOV.format(folder=shlex.quote(str(context.folder)))
        answer = context.guest.run(line, context.deadline(_PATIENCE))
        counts = parse_line_counts(answer.text, context.folder)
        timer.stage.detail = f"{len(counts)} files"
    return [timer.result(LineCountsStepResult, line_counts=counts)]
