"""Run one command of a step in the guest, and find out what its end means for the guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmlab.diagnosis import hang
from kmlab.run.context.guest_commands import CommandLimits, CommandResult
from kmlab.run.context.results import Results
from kmlab.run.context.run_context import RunContext, StepTimer

_LAST_WORDS = 2.0
"""Seconds for the console to report a panic after the connection to the guest broke."""


def run_in_guest(
    context: RunContext,
    so_far: Results,
    timer: StepTimer,
    command: Callable[[CommandLimits], CommandResult],
    patience: float,
) -> tuple[CommandResult, dict[str, Any]]:
    """Run a command; return its result, and the StepResult fields that describe the guest's state."""
    limits = context.limits(patience)
    result = command(limits)
    facts: dict[str, Any] = {"kernel": result.kernel, "transcript": result.transcript}
    if result.answer.code is not None and not result.answer.lost:
        context.wait_for_mark(limits.mark)
        return result, facts
    facts["guest_gone"] = True
    if result.answer.lost:
        context.console.over.wait(_LAST_WORDS)
    if context.console.panicked:
        timer.stage.outcome = "failed"
    elif result.answer.lost or not hang.guest_exists(context.host, context.guest):
        # QEMU may have ended it without a message to anybody: a reboot, or a triple fault.
        timer.stage.outcome = facts["verdict"] = "lost"
    else:
        timer.stage.outcome = facts["verdict"] = "hang"
        build = so_far.build
        module_facts = (build.images, context.folder, build.names, timer.name)
        facts["hang"] = hang.take_snapshot(context.host, context.guest, context.console, *module_facts)
    return result, facts
