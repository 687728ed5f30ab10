"""Unload the modules with rmmod, the last one first."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

from kmlab.common.errors import GuestUnreachable
from kmlab.diagnosis import hang
from kmlab.diagnosis.hang import HangSnapshot
from kmlab.kernel.module.modinfo import ModInfo
from kmlab.kernel.module.unload_errors import explain_unload_failure
from kmlab.run.context import guest_commands
from kmlab.run.context.guest_commands import CommandResult
from kmlab.run.context.in_guest import run_in_guest
from kmlab.run.context.results import (
    DependenciesStepResult,
    LoadStepResult,
    Results,
    StepResult,
    UnloadStepResult,
)
from kmlab.run.context.run_context import STATE_PATIENCE, RunContext


def unload(context: RunContext, so_far: Results) -> Sequence[StepResult]:
    """Unload this run's modules, or with `kmlab unload` an earlier run's; stop at the first failure."""
    results: list[StepResult] = []
    for info, hidden in reversed(_to_unload(context, so_far)):
        if not context.usable or any(result.outcome != "ok" for result in results):
            break
        results.append(_unload(context, so_far.plus(results), info, hidden))
    now = so_far.plus(results)
    keeps = context.options.keep or context.module.keep
    if not context.usable or not now.alive or now.left_loaded or keeps:
        return results
    if context.module.load == "modprobe" and so_far.all(LoadStepResult):
        guest_commands.uninstall(context.guest, context.module.name, context.deadline(STATE_PATIENCE))
    if names := now.dependencies or _of_earlier_run(context, now):
        results.append(_unload_dependencies(context, now, names))
    return results


def _of_earlier_run(context: RunContext, so_far: Results) -> list[str]:
    """Return the software devices that `kmlab load` loaded, and that `kmlab unload` unloads."""
    if "load" in context.options.steps:
        return []
    return [name for name in reversed(context.module.software_devices) if name in so_far.modules[0]]


def _unload_dependencies(context: RunContext, so_far: Results, names: Sequence[str]) -> DependenciesStepResult:
    """Unload the kernel's own modules that came with the module. What stays only makes the guest dirty."""
    with context.step("unload") as timer:
        timer.stage.detail = f"{', '.join(names)}: loaded as dependencies"
        command = functools.partial(guest_commands.unload_dependencies, context.guest, names)
        result, facts = run_in_guest(context, so_far, timer, command, context.step_patience)
    left = tuple(name for name in names if result.listed(name))
    return timer.result(DependenciesStepResult, left=left, **facts)


def _to_unload(context: RunContext, so_far: Results) -> list[tuple[ModInfo, bool]]:
    """Return the modules, in the order in which they were loaded, and whether each hides itself."""
    if "load" not in context.options.steps:
        modules = so_far.build.modules if "unload" in context.options.steps else ()
        return [(info, False) for _, info in modules]
    if context.options.keep or context.module.keep:
        return []
    return [(step.info, step.hidden) for step in so_far.loaded if step.info]


def _unload(context: RunContext, so_far: Results, info: ModInfo, hidden: bool) -> UnloadStepResult:
    with context.step("unload") as timer:
        timer.stage.detail = info.name
        command = functools.partial(guest_commands.unload, context.guest, info.name)
        result, facts = run_in_guest(context, so_far, timer, command, context.step_patience)
        if not facts.get("guest_gone"):
            facts |= _unload_facts(context, so_far, info, hidden, result)
            timer.stage.outcome = "failed" if facts.get("verdict") else "ok"
    return timer.result(UnloadStepResult, module=info.name, **facts)


def _hides(context: RunContext, so_far: Results, info: ModInfo) -> bool:
    """Return whether the kernel still has a module that rmmod does not find."""
    if all(step.info != info for step in so_far.loaded):
        return False
    text = so_far.sections.get(info.name, {}).get(".text")
    with contextlib.suppress(GuestUnreachable):
        return guest_commands.is_in_memory(context.guest, info.name, text, context.deadline(STATE_PATIENCE))
    return False


def _blocked(context: RunContext, so_far: Results) -> HangSnapshot | None:
    """Find the module's tasks that wait for each other, which is why it cannot be unloaded; None if none do."""
    build = so_far.build
    return hang.find_blocked(
        context.guest, build.images, context.folder, build.names, context.deadline(2 * STATE_PATIENCE)
    )


def _unload_facts(
    context: RunContext, so_far: Results, info: ModInfo, hidden: bool, result: CommandResult
) -> dict[str, Any]:
    """Return the fields of the result that say how the unload went."""
    listed = result.listed(info.name)
    about = (result.answer.error_text, result.answer.code, info.name, listed)
    failure = explain_unload_failure(*about, info.has_exit, hidden=hidden)
    if failure and failure.kind == "not-loaded" and _hides(context, so_far, info):
        failure = explain_unload_failure(*about, info.has_exit, hidden=True)
    if failure and failure.kind == "in-use" and listed and (listed.refcount or 0) > len(listed.holders):
        with contextlib.suppress(GuestUnreachable):
            names = guest_commands.names_before(context.guest, context.module.name)
            users = guest_commands.find_users(context.guest, info.name, names, context.deadline(STATE_PATIENCE))
            failure = explain_unload_failure(*about, info.has_exit, users)
            if failure and len({user.function for user in users} - {None}) > 1 and (found := _blocked(context, so_far)):
                crash = found.silent
                return {"verdict": "hang", "reason": f"{crash.text if crash else ''}; {failure.reason}", "hang": found}
    return {"verdict": "unload-failed", "reason": failure.reason} if failure else {}
