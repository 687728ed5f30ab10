"""Run the user's own command while the module is loaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from kmlab.common.events import printable
from kmlab.run.context import guest_commands
from kmlab.run.context.in_guest import run_in_guest
from kmlab.run.context.results import ExerciseStepResult, Results
from kmlab.run.context.run_context import RunContext


def exercise(context: RunContext, so_far: Results) -> Sequence[ExerciseStepResult]:
    """Run it as root in the module's folder; a code other than 0 is `test-failed`."""
    command = context.options.exercise or context.module.exercise
    loaded = so_far.loaded
    if not command or not context.usable or not loaded or len(loaded) < len(so_far.build.modules):
        return ()
    last = loaded[-1].info
    assert last is not None
    with context.step("exercise") as timer:
        timer.stage.detail = command
        run = functools.partial(guest_commands.exercise, context.guest, context.folder, command, last.name)
        result, facts = run_in_guest(context, so_far, timer, run, context.exercise_patience)
        answer = result.answer
        if not facts.get("guest_gone") and not answer.ok:
            timer.stage.outcome = "failed"
            words = (answer.text + answer.error_text).strip().splitlines()
            tail = f": {printable(words[-1], 200)}" if words else ""
            facts["verdict"] = "test-failed"
            facts["reason"] = f"the exercise `{command}` ended with {answer.code}{tail}{_locked_down(context, words)}"
    facts["transcript"] = ""  # exercise.log has it
    return [timer.result(ExerciseStepResult, log=answer.text + answer.error_text, **facts)]


def _locked_down(context: RunContext, words: Sequence[str]) -> str:
    """Return what to add where a program may have failed because of Secure Boot, and not because of the module."""
    keyring = context.keyring()
    if keyring is None or keyring.lockdown in ("", "none"):
        return ""
    if not any("Operation not permitted" in line for line in words):
        return ""
    return "; this guest is locked down, which closes most of debugfs, /dev/mem and the like even to root"
