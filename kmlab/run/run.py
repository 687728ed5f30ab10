"""Run a module in a guest, from its folder to a verdict.

This is the only place where a guest's LabError becomes the outcome `error`, so that other guests continue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import traceback
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kmlab.common import paths
from kmlab.common.errors import ConfigError, KmlabError, LabError, unexpected
from kmlab.common.events import EventSink, Note, Stage, Timings, escape_surrogates, printable
from kmlab.config.lab import GuestSpec, Lab, Module
from kmlab.config.run_options import Options, signs
from kmlab.diagnosis import hang
from kmlab.diagnosis.console import ConsoleMonitor, RunLog
from kmlab.diagnosis.ring_buffer import RingBuffer
from kmlab.host import Host
from kmlab.kernel.build.api_changes import parse_release
from kmlab.kernel.crash.crash import Crash, outcome_of
from kmlab.kernel.crash.parser.scanner import find_crashes
from kmlab.kernel.crash.source_lines import located, seen_from, symbols_of
from kmlab.kernel.log.records import KernelLog, parse_log
from kmlab.kernel.log.taint import find_taints
from kmlab.kernel.module.proc_modules import KernelState
from kmlab.provision import lifecycle
from kmlab.provision.guest import Guest
from kmlab.provision.plan.plan import lab_files
from kmlab.run import evidence, result
from kmlab.run.build.make import check_folder
from kmlab.run.build.request import BuildRequest, request_for
from kmlab.run.build.sandbox_build import BuildCache, SandboxBuild
from kmlab.run.build.source_tree import SourceTree, widen
from kmlab.run.case_collection import collect_cases, expectation_diagnostics
from kmlab.run.context.outdated import Outdated, UnfitGuest
from kmlab.run.context.results import Results, StepResult
from kmlab.run.context.run_context import STATE_PATIENCE, RunContext, build_patience
from kmlab.run.judge import Verdict, judge, state_left
from kmlab.run.result import RunResult
from kmlab.run.steps import run_steps

if TYPE_CHECKING:
    from kmlab.provision.plan.lab_key import Signer

__all__ = ["Options", "Outdated", "not_tried", "run", "shown_source"]

_BY_INIT = ("exists", "init-error", "init-crash", "init-hang", "killed", "memory", "load", "not-listed")
"""Failures to load that depend on the state of the kernel, not on the file alone."""
_PANIC_PATIENCE = 0.5
"""Seconds for an answer of a guest whose console reports a panic."""
_RING_PATIENCE = 1.0
"""Seconds for the ring buffer of a guest whose console reports that a step will not end."""


def run(
    host: Host,
    lab: Lab,
    spec: GuestSpec,
    module: Module,
    options: Options,
    events: EventSink,
    builds: BuildCache | None = None,
) -> RunResult:
    """Run one module in one guest. Raise only for bad input, or Outdated if the options ask for it.

    `builds` holds what the same command built for other guests. If another module ran in the guest before and this one
    does not pass, repeat the run in a fresh guest before blaming this module.
    """
    result.check_expected(lab, module)
    check_folder(lab.locate(module.source), module.prepare)
    request = request_for(lab, module, options)
    if request.tree.needed:
        events(Note(spec.name, _sends_more(request.tree)))
    builds = builds or BuildCache()
    fresh = dataclasses.replace(options, fresh=True)
    try:
        first, before = _attempt(host, lab, spec, module, request, options, events, builds)
    except UnfitGuest as unfit:
        events(Note(spec.name, f"restored, because {unfit}"))
        first, before = _attempt(host, lab, spec, module, request, fresh, events, builds)
    wider = None if options.root or module.root else _widen(first, request.tree)
    if wider:
        events(Note(spec.name, f"{_sends_more(wider)}: building again"))
        request = dataclasses.replace(request, tree=wider)
        first, before = _attempt(host, lab, spec, module, request, options, events, builds)
    if not before or not _depends_on_guest(first):
        return first
    suspects = ", ".join(before)
    events(
        Note(spec.name, f"{first.outcome}, but {suspects} ran in this guest before: running it again in a fresh one")
    )
    again, _ = _attempt(host, lab, spec, module, request, fresh, events, builds)
    return again if _is_the_same(first, again) else _not_confirmed(again, first, suspects)


def not_tried(lab: Lab, spec: GuestSpec, module: Module, before: RunResult) -> RunResult:
    """Return the result of a run whose guest could not be started for the run `before`."""
    reason = f"not tried, because the guest could not be started before: {before.reason}"
    return RunResult(
        **_about(lab, spec, module), outcome="error", title=before.title, reason=reason, guest_survived=False
    )


def shown_source(lab: Lab, module: Module) -> str:
    """Return the module's folder as people see it: relative to the lab's folder if it lies below."""
    place = lab.locate(module.source)
    with contextlib.suppress(ValueError):
        return str(PurePosixPath(place.resolve().relative_to(lab.folder.resolve())))
    return str(place)


def _sends_more(tree: SourceTree) -> str:
    """Return the sentence that says which folder is sent, and what for."""
    return f"sends {printable(str(tree.root))}, because the build needs {printable(tree.needed, 120)}"


def _widen(ended: RunResult, tree: SourceTree) -> SourceTree | None:
    """Return a larger folder to send if the log of a failed build asks for one."""
    if ended.outcome != "build-failed" or ended.directory is None or ended.build_log is None:
        return None
    with contextlib.suppress(OSError):
        return widen(tree, (ended.directory / ended.build_log).read_text(encoding="utf-8", errors="replace"))
    return None


def _attempt(
    host: Host,
    lab: Lab,
    spec: GuestSpec,
    module: Module,
    request: BuildRequest,
    options: Options,
    events: EventSink,
    builds: BuildCache,
) -> tuple[RunResult, Sequence[str]]:
    """Run once and write the evidence; return the result, and which other modules ran in the guest before."""
    began = time.monotonic()
    files = lab_files(lab)
    signer = _signer(files, lab, spec, options)
    for note in signer.pair.notes if signer else ():
        events(Note(spec.name, note))
    folder = evidence.new_folder(files.runs, lab, module, spec, options)
    keeps_modules = "load" not in options.steps
    before: Sequence[str] = ()
    facts: dict[str, Any] = {}
    timings = Timings()
    try:
        sandbox = SandboxBuild(
            lab,
            files.guest(spec.name),
            request,
            lambda accel: build_patience(options, module, accel),
            events,
            builds,
        )
        session = lifecycle.guest_session(
            host,
            lab,
            spec,
            events,
            fresh=options.fresh,
            unused=options.unused,
            allow_kept_modules=keeps_modules,
            while_restoring=sandbox.under_way,
            timings=timings,
        )
        with session as guest:
            context = _context(host, lab, guest, module, request, options, events, signer, sandbox, began)
            results, log, crashes, benign = _run_watched(context)
            before = () if keeps_modules else results.baseline.ran_before
            facts = _conclude(context, results, log, crashes, benign, folder)
            facts["vmcore"] = _dump_memory(context, spec, results, facts["outcome"], folder)
            if not facts["guest_survived"]:
                lifecycle.stop(host, lab, spec.name)
    except (ConfigError, Outdated, UnfitGuest):
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    except Exception as problem:
        error = _lab_error(problem, folder)
        reason = error.message + (f" (hint: {error.hint})" if error.hint else "")
        facts |= {"outcome": "error", "title": error.message, "reason": reason, "guest_survived": False}
    finally:
        evidence.release(folder)
    parts = tuple(part._replace(began=part.began - began) for part in timings.parts)
    facts = {"expect": module.expect, "guest_parts": parts, **facts}
    outcome = RunResult(**_about(lab, spec, module), directory=folder, seconds=time.monotonic() - began, **facts)
    paths.write_json(folder / "result.json", escape_surrogates(result.document([outcome])))
    return outcome, before


def _lab_error(problem: Exception, folder: Path) -> KmlabError:
    """Return the error that ended a guest's run; the run's folder keeps the traceback of an unexpected one."""
    if not isinstance(problem, KmlabError):
        with contextlib.suppress(OSError):
            text = "".join(traceback.format_exception(problem))
            (folder / "traceback.txt").write_text(evidence.printable_lines(text))
    return unexpected(problem, "the run failed")


def _about(lab: Lab, spec: GuestSpec, module: Module) -> dict[str, Any]:
    """Return the fields of a result that are known before the run."""
    place = lab.locate(module.source)
    return {"module": module.name, "source": shown_source(lab, module), "folder": place, "guest": spec.name}


def _signer(files: paths.LabFiles, lab: Lab, spec: GuestSpec, options: Options) -> Signer | None:
    if not signs(options.sign, spec):
        return None
    # Importing cryptography takes a while, so only here.
    from kmlab.provision.plan.lab_key import signer_for

    return signer_for(files, lab.name, spec, options.sign, options.ask)


def _context(
    host: Host,
    lab: Lab,
    guest: Guest,
    module: Module,
    request: BuildRequest,
    options: Options,
    events: EventSink,
    signer: Signer | None,
    sandbox: SandboxBuild,
    began: float,
) -> RunContext:
    def answers() -> bool:
        """Return whether the guest reports its kernel's state, which a guest that panicked cannot do."""
        with contextlib.suppress(LabError):
            guest.read_kernel_state(context.deadline(_PANIC_PATIENCE))
            return True
        return False

    ring = RingBuffer(lambda seconds: guest.shell.kernel_log(context.deadline(seconds)))
    context = RunContext(
        host=host,
        lab=lab,
        guest=guest,
        module=module,
        options=options,
        events=events,
        console=ConsoleMonitor(guest.files.console, answers, lambda: ring.log(_RING_PATIENCE)),
        ring=ring,
        request=request,
        sandbox_build=sandbox,
        signer=signer,
        began=began,
    )
    return context


def _run_watched(context: RunContext) -> tuple[Results, RunLog, list[Crash], list[Crash]]:
    """Run the steps with the console watched; return their results, the kernel's log, the findings in it, and others.

    The others are reports that are no bug of a module's.
    """
    console = context.console
    with console:
        results = run_steps(context)
        console.check()
        ring = _ring_buffer(context, results) if not console.panicked else None
        log = console.finish(ring)
    if console.panicked and results.alive:
        results = results.plus([StepResult("panic", guest_gone=True, shown=False)])
    build = results.build
    crashes, benign = log.find_crashes(build.names, alive=results.alive)
    if all(outcome_of(crash) == "warning" for crash in crashes):
        # What a crash interrupted frees nothing any more.
        crashes = [*crashes, *_findings_of_checks(results)]
    if results.alive:
        # A panic stops the kernel: in a guest that lives, text that looks like a panic is not one.
        crashes = [dataclasses.replace(crash, fatal=False) for crash in crashes if crash.kind != "panic"]
    elif results.shown:
        taint = find_taints(record.text for record in log.records)
        results = results.plus([StepResult(results.shown[-1].name, kernel=KernelState(taint, {}), shown=False)])
    symbols = symbols_of(build.images, context.top)
    crashes = [located(crash, symbols, context.top, results.sections) for crash in crashes]
    crashes = [seen_from(crash, build.built_in or str(context.request.tree.below)) for crash in crashes]
    for problem in dict.fromkeys(each.problem for each in symbols.values() if each.problem):
        context.events(Note(context.guest.record.name, f"no lines: {printable(problem, 300)}"))
    seen = results.hang
    return results, log, hang.merge_hang_findings(crashes, seen.busy, seen.silent, build.names), benign


def _findings_of_checks(results: Results) -> list[Crash]:
    """Return what the checks found; they report in the words of the kernel's log."""
    read = [crash for report in results.reports for crash in find_crashes(parse_log(report.encode()).records)]
    return [*read, *results.findings]


def _ring_buffer(context: RunContext, results: Results) -> KernelLog | None:
    """Return the guest's own ring buffer; None where it cannot be had.

    The guest's agent reads it. That of a guest that hangs was read out of its memory: its console may have been silent.
    """
    if not results.alive:
        return results.hang.log
    return context.ring.log(STATE_PATIENCE)


def _conclude(
    context: RunContext,
    results: Results,
    log: RunLog,
    crashes: Sequence[Crash],
    benign: Sequence[Crash],
    folder: Path,
) -> dict[str, Any]:
    """Judge the run, write its evidence and mark its guest; return the fields of its result."""
    lab, module, guest = context.lab, context.module, context.guest
    expect = module.expect.on(parse_release(guest.record.release))
    if not {"load", "exercise", "unload"} <= {*context.options.steps}:
        # What the log of a whole run has, half a run has only half of.
        expect = dataclasses.replace(expect, log=())
    tests = collect_cases(results, log.records, crashes, context.folder)
    allow, patience = (*lab.allow, *expect.allow), context.step_patience
    verdict: Verdict = judge(results, log, crashes, tests, expect, allow, patience, benign)
    evidence.write_evidence(folder, results, log, context.console.raw())
    if results.alive:
        guest.mark(*state_left(results, log, verdict, context.options.keep or module.keep))
    return {
        "kernel": guest.record.release,
        "expect": expect,
        "outcome": verdict.outcome,
        "unmet": verdict.unmet,
        "title": verdict.title,
        "crashes": verdict.crashes,
        "notes": verdict.notes,
        "reason": verdict.reason,
        "failure": results.failure,
        "diagnostics": (*results.build.diagnostics, *expectation_diagnostics(tests)),
        "tests": tests,
        "taint_before": results.taint[0],
        "taint_after": results.taint[1],
        "tainted_by": results.tainted_by,
        "modules_before": results.modules[0],
        "modules_after": results.modules[1],
        "log": tuple(record for record in log.records if record.from_kernel),
        "lost_records": log.lost_records,
        "steps": results.shown,
        "guest_survived": results.alive,
        "console": "console.log",
        "kernel_log": "dmesg.txt",
        "build_log": "build.log",
        "line_counts": results.line_counts,
        "drivers": results.drivers,
        "collected": evidence.write_collected(folder, results.collected),
    }


def _dump_memory(context: RunContext, spec: GuestSpec, results: Results, outcome: str, folder: Path) -> str | None:
    """Return the name of the guest's memory in the run's folder, where it was wanted and could be had."""
    lab, guest = context.lab, context.guest
    dump_wanted = lab.vmcore == "always" or (lab.vmcore == "auto" and outcome in ("panic", "hang"))
    if not dump_wanted or "lost" in results.verdicts:
        return None
    limit, name = lab.vmcore_max, "vmcore"
    try:
        with Stage(context.events, spec.name, "keeping its memory"):
            if hang.dump_memory(context.host, guest.record, guest.files, folder / name, spec.memory, limit):
                return name
        why = f"the dump is beyond vmcore_max, {limit >> 20} MiB"
    except LabError as error:
        why = error.message
    context.events(Note(spec.name, f"its memory was not kept: {why}"))
    return None


def _depends_on_guest(ended: RunResult) -> bool:
    """Return whether the guest, and so what ran in it before, can have caused the outcome."""
    if ended.outcome == "load-failed":
        return ended.failure in _BY_INIT
    return ended.outcome not in ("pass", "skipped", "build-failed", "error")


def _is_the_same(one: RunResult, other: RunResult) -> bool:
    def fingerprints(crashes: Sequence[Crash]) -> set[str]:
        return {crash.fingerprint for crash in crashes}

    alike = not fingerprints(one.crashes) or fingerprints(one.crashes) & fingerprints(other.crashes)
    return one.outcome == other.outcome and bool(alike)


def _not_confirmed(fresh: RunResult, used: RunResult, suspects: str) -> RunResult:
    """Return the fresh guest's result, with a sentence on what was seen in the used one."""
    seen = f"{used.outcome} in a used guest ({used.title})"
    sentence = f"{seen}, not seen on a fresh guest; suspect {suspects}, which ran before"
    annotated = dataclasses.replace(fresh, reason=f"{fresh.reason}; {sentence}" if fresh.reason else sentence)
    if annotated.directory is not None:
        paths.write_json(annotated.directory / "result.json", escape_surrogates(result.document([annotated])))
    return annotated
