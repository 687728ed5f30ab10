"""Run the cases of a torture, one after the other, up to the first that goes wrong: the guest is not sound after it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from kmlab.common.errors import ConfigError, GuestUnreachable
from kmlab.common.events import printable
from kmlab.config.catalog import fuzz_source
from kmlab.config.run_options import TorturePlan
from kmlab.kernel.crash.parser.scanner import find_crashes
from kmlab.kernel.detectors.detectors import VALIDATE_SLABS
from kmlab.kernel.log.records import Record
from kmlab.kernel.module.modinfo import format_params
from kmlab.kernel.symbols.elf import MalformedModule
from kmlab.kernel.symbols.symbolizer import ModuleSymbols
from kmlab.run.build.build_place import read_sources
from kmlab.run.build.fuzz_headers import read_headers
from kmlab.run.context import guest_commands
from kmlab.run.context.in_guest import run_in_guest
from kmlab.run.context.results import Results, TortureStepResult
from kmlab.run.context.run_context import STATE_PATIENCE, RunContext
from kmlab.run.steps.checks.leak_check import find_allocations
from kmlab.run.steps.checks.leftover_check import find_leftovers
from kmlab.run.steps.load import begin_loads, params_of
from kmlab.run.torture.fuzz import DEVICE_ABSENT, FUZZ, FUZZ_FOLDER, REPRODUCER, FuzzTarget, ioctl_names, numbers, table
from kmlab.run.torture.groups import GROUPS, OFFERS
from kmlab.run.torture.torture_case import LOAD_REFUSED, UNLOAD_REFUSED, Target, TortureCase, script

_POINTS_LEFT = re.compile(r"^points left: (\d+)$", re.MULTILINE)
_FAILURE = "FAULT_INJECTION: forcing a failure"
_FRAME = re.compile(
    r"^ *(?:\? )?(?P<function>[\w.$]+)\+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+) \[(?P<module>[\w-]+)"
)
_REFUSALS = {
    UNLOAD_REFUSED: ("unload-failed", "could not be unloaded within 5 s"),
    LOAD_REFUSED: ("load-failed", "did not load although it had loaded before"),
    DEVICE_ABSENT: ("test-failed", "did not make the device that `fuzz:` in lab.yaml names"),
}
_COMPILE_PATIENCE = 60.0
"""Seconds for the guest's compiler and a program of one page."""


def torture(context: RunContext, so_far: Results) -> Sequence[TortureStepResult]:
    """Run the cases that the plan wants and that were not tried yet, until one goes wrong."""
    plan = context.options.torture
    context.guest.begin_run(context.module.name)
    if plan is None or not so_far.build.ok or not so_far.build.modules:
        return ()
    begin_loads(context, so_far)
    target = _target(context, so_far, plan)
    results: list[TortureStepResult] = []
    for group in GROUPS:
        if plan.groups and group.name not in plan.groups:
            continue
        if group.needs_device and (plan.only is None or plan.only.startswith(f"{group.name}-")):
            target = dataclasses.replace(target, fuzz=_fuzz_target(context, plan))
        if why := group.why_not(target):
            results.append(TortureStepResult("torture", "skipped", group=group.name, what=why, shown=not plan.only))
            continue
        results += _run_cases(context, so_far.plus(results), target, group.cases(target), plan)
        if results and results[-1].outcome not in ("ok", "skipped"):
            break
    return results


def _run_cases(
    context: RunContext, so_far: Results, target: Target, cases: Iterator[TortureCase], plan: TorturePlan
) -> list[TortureStepResult]:
    results: list[TortureStepResult] = []
    for case in cases:
        if case.name in plan.done or plan.only not in (None, case.name):
            continue
        if not context.usable or (plan.until is not None and time.monotonic() > plan.until):
            break
        result, is_last = _run_case(context, so_far.plus(results), target, case)
        if not is_last:
            results.append(result)
        if is_last or result.outcome != "ok":
            break
    return results


def _target(context: RunContext, so_far: Results, plan: TorturePlan) -> Target:
    modules = so_far.build.modules
    offered = context.guest.run(f"ls -d {shlex.join(OFFERS)} 2> /dev/null", context.deadline(STATE_PATIENCE)).text
    return Target(
        folder=str(context.top),
        modules=modules,
        params={info.name: format_params(params_of(context, so_far, path, info)) for path, info in modules},
        exercise=context.options.exercise or "; ".join(each.run for each in context.module.exercises) or None,
        offers=frozenset(offered.split()),
        check=VALIDATE_SLABS if so_far.has_detector("slab") else "",
        repeat=plan.repeat,
        seed=plan.seed,
    )


def _fuzz_target(context: RunContext, plan: TorturePlan) -> FuzzTarget | None:
    """Compile the programs of fuzzing in the guest; return what is fuzzed, if anything is."""
    fuzz = context.module.fuzz
    if fuzz is None:
        return None
    top, deadline = str(context.top), context.deadline(_COMPILE_PATIENCE)
    name, sources = REPRODUCER, {"reproducer.c": plan.program}
    if not plan.program:
        headers = read_headers(context.lab, context.module, context.request.tree)
        known = numbers([*headers.values(), *read_sources(context.source).values()])
        sources = {"fuzz.c": fuzz_source(), "table.c": table([*headers], ioctl_names(*headers.values()), known)}
        name = FUZZ
    answer = guest_commands.compile_program(context.guest, PurePosixPath(FUZZ_FOLDER), name, sources, top, deadline)
    if answer.code is None:
        raise GuestUnreachable("the guest went away while it compiled the program of the torture's group fuzz")
    if not answer.ok:
        raise _not_compiled(context, answer.error_text)
    return FuzzTarget(fuzz.device, fuzz.rounds, plan.careful, bool(plan.program))


def _not_compiled(context: RunContext, said: str) -> ConfigError:
    words = [line for line in said.splitlines() if "error" in line] or said.splitlines()[-1:]
    problem = printable(words[0], 200) if words else "the compiler said nothing"
    at = ("modules", context.module.name, "fuzz")
    hint = (
        "a program must be able to include the header: put the kernel's own parts between #ifdef __KERNEL__ and #endif"
    )
    return context.lab.error(at, f"the headers of 'ioctls' cannot be compiled in the guest: {problem}", hint)


def _run_case(
    context: RunContext, so_far: Results, target: Target, case: TortureCase
) -> tuple[TortureStepResult, bool]:
    """Run one case; return its result, and whether there was nothing more to fail."""
    position = context.console.position()
    is_last = False
    facts: dict[str, Any]
    with context.step("torture") as timer:
        timer.stage.detail = f"{case.name}: {printable(case.what, 100)}"
        line = f"sh -c {shlex.quote(script(target, case))}"
        run = functools.partial(guest_commands.check, context.guest, line)
        result, facts = run_in_guest(context, so_far, timer, run, context.exercise_patience)
        facts["transcript"] = ""  # the script is kmlab's own
        records = context.console.since(position)
        if not facts.get("guest_gone"):
            left = _POINTS_LEFT.search(result.answer.text)
            is_last = case.counts and (left is None or int(left[1]) > 0)
            facts |= _facts(context, so_far, case, result.answer.code, records)
        if facts.get("verdict") or facts.get("reports") or facts.get("findings") or find_crashes(records):
            timer.stage.outcome = "failed" if timer.stage.outcome == "ok" else timer.stage.outcome
            is_last = False
    facts |= {"case": case.name, "group": case.group, "what": case.what}
    facts["output"] = result.answer.text if case.keeps_output else ""
    facts["failed_call"] = _failed_call(records, so_far, context) if case.counts else ""
    return timer.result(TortureStepResult, **facts), is_last


def _facts(
    context: RunContext, so_far: Results, case: TortureCase, code: int | None, records: Sequence[Record]
) -> dict[str, Any]:
    """Return what a case that ended says: whether the module was refused, and what it left allocated."""
    name = so_far.build.modules[-1][1].name
    if code in _REFUSALS:
        verdict, words = _REFUSALS[code]
        return {"verdict": verdict, "reason": f"{printable(name)} {words}, in case {case.name}"}
    if code:
        return {"verdict": "test-failed", "reason": f"the script of case {case.name} ended with {code}"}
    if find_crashes(records):
        return {}
    reports = find_allocations(context, so_far) if so_far.has_detector("allocations") else ()
    return {"reports": tuple(reports), "findings": tuple(find_leftovers(context, so_far))}


def _failed_call(records: Sequence[Record], so_far: Results, context: RunContext) -> str:
    """Return the place in the module whose call was made to fail: `function (file:line)`."""
    texts = [record.text for record in records]
    begin = next((number for number, text in enumerate(texts) if _FAILURE in text), len(texts))
    images = {info.name: so_far.build.images[path] for path, info in so_far.build.modules}
    frames = (_FRAME.match(text) for text in itertools.islice(texts, begin, None))
    match = next((frame for frame in frames if frame and frame["module"] in images), None)
    if match is None:
        return ""
    function, offset, size = match["function"], int(match["offset"], 16), int(match["size"], 16)
    with contextlib.suppress(MalformedModule):
        symbols = ModuleSymbols(images[match["module"]], match["module"], context.top)
        places = [place for place in symbols.locate(function, offset, size, False) if place.file]
        # kmalloc() is inlined in who calls it.
        place = next((place for place in places if place.own), next(iter(places), None))
        if place:
            return f"{place.function} ({place.file}:{place.line})"
    return function
