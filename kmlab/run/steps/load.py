"""Load the modules with insmod or modprobe, in the order of their dependencies."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

from kmlab.common.events import Deadline
from kmlab.config.lab import Param
from kmlab.kernel.log.taint import taint_mask
from kmlab.kernel.module.failure import Failure
from kmlab.kernel.module.load_errors import explain_load_failure, find_ignored_params, not_listed
from kmlab.kernel.module.modinfo import ModInfo, format_params
from kmlab.kernel.symbols.elf import MalformedModule
from kmlab.provision.plan.plan import lab_files
from kmlab.run.build.build_place import read_config, read_sources
from kmlab.run.context import guest_commands
from kmlab.run.context.guest_commands import CommandResult
from kmlab.run.context.in_guest import run_in_guest
from kmlab.run.context.outdated import UnfitGuest
from kmlab.run.context.results import LoadStepResult, Results
from kmlab.run.context.run_context import STATE_PATIENCE, RunContext


def load(context: RunContext, so_far: Results) -> Sequence[LoadStepResult]:
    """Load each module that does not need a refused one; stop when one has crashed the kernel or does not end."""
    build = so_far.build
    loads = build.ok and {"load", "unload"} & set(context.options.steps)
    context.guest.begin_run(context.module.name if loads else None)
    if not build.ok:
        return ()
    begin_loads(context, so_far)
    if context.module.load == "modprobe" and "load" in context.options.steps:
        places = [path for path, _ in build.modules]
        deadline = Deadline(context.build_patience)
        guest_commands.install(context.guest, context.module.name, context.top, places, deadline)
    results: list[LoadStepResult] = []
    for path, info in build.modules if "load" in context.options.steps else ():
        if not context.usable:
            break
        why = _why_not_tried(results, info)
        if why:
            results.append(_skip(context, path, info, why))
        else:
            results.append(_load(context, so_far.plus(results), path, info, build.outside if not results else ()))
    return results


def begin_loads(context: RunContext, so_far: Results) -> None:
    """Note what the guest had before the first load. Raise UnfitGuest if its console is deaf."""
    if so_far.baseline.names is not None and not so_far.build.names & so_far.modules[0]:
        guest_commands.note_names(context.guest, context.module.name, so_far.baseline.names)
    context.wait_for_mark(context.console.begin)
    if context.console.deaf and not so_far.baseline.unused:
        raise UnfitGuest("its console had fallen silent")


_UNSAFE = ("init-crash", "init-hang", "killed")
"""Failures to load after which nothing more is tried in the guest."""


def _why_not_tried(results: Sequence[LoadStepResult], info: ModInfo) -> str | None:
    """Return why a module is not loaded: it needs one that was not, or the guest is not sound any more."""
    unsafe = next((step for step in results if step.guest_gone or step.failure in _UNSAFE), None)
    if unsafe and unsafe.info:
        return f"after {unsafe.info.name}"
    absent = [step.info.name for step in results if step.outcome != "ok" and step.info]
    needed = next((name for name in info.depends if name in absent), None)
    return f"needs {needed}" if needed else None


def _skip(context: RunContext, path: str, info: ModInfo, why: str) -> LoadStepResult:
    """Return the result of a module that is not loaded."""
    with context.step("load") as timer:
        timer.stage.detail = f"{info.name}, {why}"
        timer.stage.outcome = "skipped"
    return timer.result(LoadStepResult, path=path, info=info)


def _load(context: RunContext, so_far: Results, path: str, info: ModInfo, outside: Sequence[str]) -> LoadStepResult:
    position = context.console.position()
    with context.step("load") as timer:
        timer.stage.detail = info.name
        params = format_params(params_of(context, so_far, path, info))
        command = functools.partial(
            guest_commands.load,
            context.guest,
            context.top,
            path,
            info.name,
            params,
            outside=outside,
            modprobe=context.module.load == "modprobe",
        )
        result, facts = run_in_guest(context, so_far, timer, command, context.step_patience)
        if not facts.get("guest_gone"):
            facts |= _load_facts(context, so_far, path, info, result, position)
            timer.stage.outcome = "failed" if facts.get("verdict") else "ok"
            if sections := facts.get("sections"):
                guest_commands.note_for_debugger(context.guest, info.name, so_far.build.images[path], sections)
    return timer.result(LoadStepResult, path=path, info=info, **facts)


def _load_facts(
    context: RunContext, so_far: Results, path: str, info: ModInfo, result: CommandResult, position: int
) -> dict[str, Any]:
    """Return the fields of the result that say how the load went."""
    log_lines = [record.text for record in context.console.since(position)]
    failure = explain_load_failure(
        result.answer.error_text,
        result.answer.code,
        log_lines,
        info.name,
        context.guest.record.release,
        info,
        already_loaded=info.name in so_far.modules[0],
        sources=lambda: read_sources(context.source).values(),
        config=lambda: read_config(context.guest, context.deadline(STATE_PATIENCE)),
        symbol_owner=lambda symbol: guest_commands.owner_of(context.guest, symbol, context.deadline(STATE_PATIENCE)),
    )
    facts: dict[str, Any] = {}
    if result.answer.ok and not _is_loaded(so_far, result, info):
        failure = not_listed(info.name)
    elif result.answer.ok:
        now = result.kernel
        facts |= {"sections": now.sections if now else {}, "hidden": now is not None and info.name not in now.modules}
        facts["reason"] = _warning(info, log_lines) if failure is None else None
    if failure:
        facts |= {"reason": _reason(context, so_far, path, info, failure), "failure": failure.kind}
        if failure.kind != "init-positive":
            facts["verdict"] = "load-failed"
    return facts


def _is_loaded(so_far: Results, result: CommandResult, info: ModInfo) -> bool:
    """Return whether the kernel has the module that insmod claims to have loaded.

    A module that removes itself from the kernel's list still has its sections in /sys, or has set a taint bit.
    """
    if result.kernel is None:
        return True  # the guest has died since, which the next step reports
    brought = result.kernel.taint & ~so_far.taint[0] & taint_mask(["OOT_MODULE"])
    return bool(result.listed(info.name) or result.kernel.sections or brought)


def _warning(info: ModInfo, log_lines: Sequence[str]) -> str | None:
    """Return what the kernel accepts but the author should know."""
    ignored = find_ignored_params(log_lines, info.name)
    if ignored:
        has = ", ".join(param.name for param in info.params) or "none"
        return f"{info.name} has no parameter {', '.join(ignored)}, which was ignored: it has {has}"
    if info.license is None:
        return (
            f"{info.name} has no MODULE_LICENSE(): the kernel counts it as proprietary, hides GPL-only "
            'symbols from it and is tainted; add MODULE_LICENSE("GPL"), or your own'
        )
    return None


def _reason(context: RunContext, so_far: Results, path: str, info: ModInfo, failure: Failure) -> str:
    keyring = context.keyring() if failure.kind == "signature" else None
    if keyring is None:
        return failure.reason
    from kmlab.provision.plan.lab_key import why_refused

    image = so_far.build.images[path]
    with contextlib.suppress(MalformedModule):
        return why_refused(lab_files(context.lab), image, info.name, keyring) or failure.reason
    return failure.reason


def params_of(context: RunContext, so_far: Results, path: str, info: ModInfo) -> dict[str, Param]:
    """Return the parameters that this module has.

    The last module also gets the parameters that no module has, so that the kernel reports them.
    """
    params = {**context.module.params, **context.options.params}
    modules = so_far.build.modules
    accepted = {param.name for _, each in modules for param in each.params}
    own = {param.name for param in info.params} | (set(params) - accepted if path == modules[-1][0] else set())
    return {name: value for name, value in params.items() if name in own}
