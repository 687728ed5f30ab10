"""Build the module: wait for the sandbox that has it under way, or run make in the guest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kmlab.common.events import Deadline
from kmlab.run.build.make import build_in_guest, still_delivered
from kmlab.run.steps.context import RunContext
from kmlab.run.steps.outdated import give_up_if_outdated
from kmlab.run.steps.results import Built, Results, StepResult


def build(context: RunContext, so_far: Results) -> Sequence[Built]:
    """Return the build, with what went wrong in it."""
    sandbox, deadline = context.sandbox_build, Deadline(context.build_patience)
    there: Mapping[str, str] = {}
    if sandbox.in_sandbox():
        there = still_delivered(context.guest, context.module.name, deadline)
        made = sandbox.built()
        began, seconds = sandbox.began - context.began, sandbox.ended - sandbox.began
        step = StepResult("build", "ok" if made.ok else "failed", seconds, made.paths, began)
    else:
        with context.step("build") as timer:
            stage = timer.stage
            made = build_in_guest(
                context.guest, context.module.name, context.source, deadline, lambda line: stage.progress(detail=line)
            )
            stage.detail = made.paths
            stage.outcome = "ok" if made.ok else "failed"
        step = timer.result(StepResult)
    give_up_if_outdated(context)
    return [
        Built(
            step.name,
            step.outcome,
            step.seconds,
            step.detail,
            step.began,
            verdict=None if made.ok else "build-failed",
            reason=None if made.ok else made.reason,
            build=made,
            delivered=there,
        )
    ]
