"""Build the module: wait for the sandbox that already builds it, or run make in the guest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kmlab.common.events import Deadline
from kmlab.run.build.delivery import still_delivered
from kmlab.run.build.make import build_in_guest
from kmlab.run.build.products import BuildResult
from kmlab.run.context.outdated import give_up_if_outdated
from kmlab.run.context.results import BuildStepResult, Results, StepResult
from kmlab.run.context.run_context import RunContext


def build(context: RunContext, so_far: Results) -> Sequence[BuildStepResult]:
    """Return the build, with the reason if it failed."""
    sandbox, deadline = context.sandbox_build, Deadline(context.build_patience)
    delivered: Mapping[str, str] = {}
    if sandbox.in_sandbox():
        delivered = still_delivered(context.guest, context.module.name, deadline)
        result = sandbox.wait()
        began, seconds = sandbox.began - context.began, sandbox.ended - sandbox.began
        step = StepResult("build", _outcome(result), seconds, result.paths, began)
    else:
        with context.step("build") as timer:
            stage = timer.stage
            result = build_in_guest(context.guest, context.request, deadline, lambda line: stage.progress(detail=line))
            stage.detail = result.paths
            stage.outcome = _outcome(result)
        step = timer.result(StepResult)
    give_up_if_outdated(context)
    return [
        BuildStepResult(
            step.name,
            step.outcome,
            step.seconds,
            step.detail,
            step.began,
            verdict=None if result.ok else "skipped" if result.skipped else "build-failed",
            reason=None if result.ok else result.reason,
            build=result,
            delivered=delivered,
        )
    ]


def _outcome(result: BuildResult) -> str:
    return "ok" if result.ok else "skipped" if result.skipped else "failed"
