"""Run the user's own commands while the module is loaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from kmlab.common.events import printable
from kmlab.config.lab import Exercise, plain_exercise
from kmlab.run.context import guest_commands
from kmlab.run.context.in_guest import run_in_guest
from kmlab.run.context.results import ExerciseStepResult, Results
from kmlab.run.context.run_context import RunContext


def exercise(context: RunContext, so_far: Results) -> Sequence[ExerciseStepResult]:
    """Run each as root in the module's folder; a code other than 0 is `test-failed`, and the next one still runs."""
    given = context.options.exercise
    planned = (plain_exercise(given),) if given else context.module.exercises
    loaded = so_far.loaded
    if "exercise" not in context.options.steps or not planned or not context.usable:
        return ()
    if not loaded or len(loaded) < len(so_far.build.modules):
        return ()
    last = loaded[-1].info
    assert last is not None
    results: list[ExerciseStepResult] = []
    for each in planned:
        results.append(_run_one(context, so_far.plus(results), each, last.name))
        if results[-1].guest_gone or not context.usable:
            break
    return results


def _run_one(context: RunContext, so_far: Results, each: Exercise, module: str) -> ExerciseStepResult:
    with context.step("exercise") as timer:
        timer.stage.detail = each.name
        run = functools.partial(guest_commands.exercise, context.guest, context.folder, each.run, module)
        patience = context.options.timeout or each.timeout or context.exercise_patience
        result, facts = run_in_guest(context, so_far, timer, run, patience)
        answer = result.answer
        if not facts.get("guest_gone") and not answer.ok:
            timer.stage.outcome = "failed"
            words = (answer.text + answer.error_text).strip().splitlines()
            tail = f": {printable(words[-1], 200)}" if words else ""
            facts["verdict"] = "test-failed"
            facts["reason"] = f"the exercise `{each.name}` ended with {answer.code}{tail}{_locked_down(context, words)}"
    facts["transcript"] = ""  # exercise.log has it
    end = "\n" if answer.text and not answer.text.endswith("\n") and answer.error_text else ""
    log = answer.text + end + answer.error_text
    return timer.result(ExerciseStepResult, log=log, exercise=each.name, code=answer.code, **facts)


def _locked_down(context: RunContext, words: Sequence[str]) -> str:
    """Return what to add where a program may have failed because of Secure Boot, and not because of the module."""
    keyring = context.keyring()
    if keyring is None or keyring.lockdown in ("", "none"):
        return ""
    if not any("Operation not permitted" in line for line in words):
        return ""
    return "; this guest is locked down, which closes most of debugfs, /dev/mem and the like even to root"
