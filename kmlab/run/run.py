"""The story of one run: a module through a guest, from its folder to a verdict.

The only place where a guest's LabError becomes the outcome `error`, so that other guests go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kmlab.common import paths
from kmlab.common.errors import ConfigError, KmlabError, LabError, unexpected
from kmlab.common.events import Note, Report, Stage, printable, readable
from kmlab.config.lab import GuestSpec, Lab, Module
from kmlab.config.run_options import Options, signs
from kmlab.config.yaml.types import matches
from kmlab.diagnosis import console, hang
from kmlab.host import Host
from kmlab.kernel.build.api_changes import parse_release
from kmlab.kernel.crash.crash import Crash, outcome_of
from kmlab.kernel.log.taint import find_unexplained
from kmlab.provision import lifecycle
from kmlab.run import result
from kmlab.run.build import check_folder
from kmlab.run.result import RunResult
from kmlab.run.sandbox_build import Ahead, Builds
from kmlab.run.steps import Outdated, Steps, UnfitGuest, build_patience

if TYPE_CHECKING:
    from kmlab.provision.plan.lab_key import Signer

__all__ = ["Options", "Outdated", "not_tried", "run", "shown_source"]

_BY_INIT = ("exists", "init-error", "init-crash", "init-hang", "killed", "memory", "load", "not-listed")
"""Failures to load that come from what init finds in the kernel, not from the file."""
_under_way: set[Path] = set()
"""Folders of runs that have not ended, in whichever thread."""
_folders = threading.Lock()


def run(
    host: Host,
    lab: Lab,
    spec: GuestSpec,
    wanted: Module,
    options: Options,
    report: Report,
    builds: Builds | None = None,
) -> RunResult:
    """One module through one guest; never raises for what the module, the guest or the lab does, but for bad input.

    And Outdated, where the options ask for it. `builds` is what the same command built for other guests. What is found
    in a guest in which other modules ran is looked for once more in a fresh one, before anybody is blamed for it.
    """
    result.check_expected(lab, wanted)
    check_folder(lab.locate(wanted.source))
    builds = builds or Builds()
    try:
        found, before = _attempt(host, lab, spec, wanted, options, report, builds)
    except UnfitGuest as unfit:
        report(Note(spec.name, f"restored, because {unfit}"))
        found, before = _attempt(host, lab, spec, wanted, dataclasses.replace(options, fresh=True), report, builds)
    if not before or not _is_finding(found):
        return found
    suspects = ", ".join(before)
    report(Note(spec.name, f"{found.outcome}, but {suspects} ran in this guest before: once more in a fresh one"))
    again, _ = _attempt(host, lab, spec, wanted, dataclasses.replace(options, fresh=True), report, builds)
    return again if _is_the_same(found, again) else _not_confirmed(again, found, suspects)


def _attempt(
    host: Host, lab: Lab, spec: GuestSpec, wanted: Module, options: Options, report: Report, builds: Builds
) -> tuple[RunResult, Sequence[str]]:
    """One run, with its evidence; and which other modules ran in its guest before."""
    began = time.monotonic()
    files = lifecycle.lab_files(lab)
    signer = _signer(files, lab, spec, options)
    for note in signer.pair.notes if signer else ():
        report(Note(spec.name, note))
    folder = _new_folder(files.runs, lab, wanted, spec, options)
    draft = dataclasses.replace(_draft(lab, spec, wanted), directory=folder)
    before: Sequence[str] = ()
    try:
        kept = "load" not in options.steps
        ahead = Ahead(
            lab,
            files.guest(spec.name),
            wanted,
            lambda accel: build_patience(options, wanted, accel),
            report,
            builds,
        )
        entered = lifecycle.entered(
            host, lab, spec, report, fresh=options.fresh, unused=options.unused, kept=kept, meanwhile=ahead.under_way
        )
        with entered as guest:
            steps = Steps(host, lab, guest, wanted, options, report, began, signer, ahead)
            draft = _judged(draft, lab, wanted, steps, steps.go())
            before = () if kept else steps.ran_before
            draft = dataclasses.replace(draft, vmcore=_dumped(host, lab, spec, steps, draft, report))
            if not draft.guest_survived:
                lifecycle.stop(host, lab, spec.name)
    except (ConfigError, Outdated, UnfitGuest):
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    except Exception as problem:
        error = _lab_error(problem, folder)
        reason = error.message + (f" (hint: {error.hint})" if error.hint else "")
        draft = dataclasses.replace(draft, outcome="error", title=error.message, reason=reason, guest_survived=False)
    finally:
        _under_way.discard(folder)
    draft = dataclasses.replace(draft, seconds=time.monotonic() - began)
    paths.write_json(folder / "result.json", readable(result.document([draft])))
    return draft, before


def _is_finding(found: RunResult) -> bool:
    """Whether the guest, and so what was run in it before, has a part in the outcome."""
    if found.outcome == "load-failed":
        return found.failure in _BY_INIT
    return found.outcome not in ("pass", "build-failed", "error")


def _is_the_same(one: RunResult, other: RunResult) -> bool:
    def known(crashes: Sequence[Crash]) -> set[str]:
        return {crash.fingerprint for crash in crashes}

    alike = not known(one.crashes) or known(one.crashes) & known(other.crashes)
    return one.outcome == other.outcome and bool(alike)


def _not_confirmed(fresh: RunResult, used: RunResult, suspects: str) -> RunResult:
    """The result of the fresh guest, which says what was seen in the used one."""
    seen = f"{used.outcome} in a used guest ({used.title})"
    sentence = f"{seen}, not seen on a fresh guest; suspect {suspects}, which ran before"
    told = dataclasses.replace(fresh, reason=f"{fresh.reason}; {sentence}" if fresh.reason else sentence)
    if told.directory is not None:
        paths.write_json(told.directory / "result.json", readable(result.document([told])))
    return told


def _lab_error(problem: Exception, folder: Path) -> KmlabError:
    """What a guest's run ended of; where nobody foresaw it, the run's folder keeps where it came from."""
    if not isinstance(problem, KmlabError):
        with contextlib.suppress(OSError):
            (folder / "traceback.txt").write_text(_printable_lines("".join(traceback.format_exception(problem))))
    return unexpected(problem, "the run could not go on")


def _signer(files: paths.LabFiles, lab: Lab, spec: GuestSpec, options: Options) -> Signer | None:
    if not signs(options.sign, spec):
        return None
    # Here alone: importing cryptography takes its time.
    from kmlab.provision.plan.lab_key import signer_for

    return signer_for(files, lab.name, spec, options.sign, options.ask)


def _new_folder(runs: Path, lab: Lab, wanted: Module, spec: GuestSpec, options: Options) -> Path:
    """A folder for the run; the oldest ones go, but none that a run of this process is writing in."""
    with _folders:
        console.keep_latest(runs, max(lab.keep_runs, options.siblings) - 1, lab.keep_runs_size, _under_way)
        folder = console.new_run_folder(runs, wanted.name, spec.name)
        _under_way.add(folder)
        return folder


def not_tried(lab: Lab, spec: GuestSpec, wanted: Module, before: RunResult) -> RunResult:
    """What there is to say of a run in a guest that could not be brought up for the run `before`."""
    reason = f"not tried, because the guest could not be brought up before: {before.reason}"
    return dataclasses.replace(
        _draft(lab, spec, wanted), outcome="error", title=before.title, reason=reason, guest_survived=False
    )


def _draft(lab: Lab, spec: GuestSpec, wanted: Module) -> RunResult:
    return RunResult(
        module=wanted.name,
        source=shown_source(lab, wanted),
        folder=lab.locate(wanted.source),
        guest=spec.name,
        expect=wanted.expect,
    )


def _judged(draft: RunResult, lab: Lab, wanted: Module, steps: Steps, found: list[Crash]) -> RunResult:
    """What the run came to; its evidence is written and the guest marked."""
    expect = wanted.expect.on(parse_release(steps.guest.record.release))
    patterns = (*lab.allow, *expect.allow)
    allowed = [c for c in found if outcome_of(c) == "warning" and any(matches(p, c.title) for p in patterns)]
    crashes = [c for c in found if c not in allowed]
    log = steps.witness.records
    missed = result.unmet_log(expect, log)
    doubts = _doubts(steps, found)
    outcomes = [*_outcomes(steps, crashes), *(outcome for outcome, _ in doubts)]
    outcome = result.worst([*outcomes, *(["test-failed"] if missed else [])])
    stuck = next((s for s in steps.steps if s.outcome in ("failed", "hang", "lost")), None)
    reason = steps.reason
    if outcome == "hang" and not crashes and stuck:
        reason = reason or f"step '{stuck.name}' did not end within {steps.step_patience:.0f} s"
    reason = "; ".join([*([reason] if reason else []), *(sentence for _, sentence in doubts)]) or None
    title = crashes[0].title if crashes else None
    if title is None and outcome != "pass":
        title = reason or (f"{outcome} in step '{stuck.name}'" if stuck else next(iter(missed), outcome))
    assert draft.directory is not None
    _write_evidence(draft.directory, steps)
    if steps.alive:
        steps.guest.mark(*_state_left(steps, outcome, crashes))
    return dataclasses.replace(
        draft,
        kernel=steps.guest.record.release,
        outcome=outcome,
        expect=expect,
        unmet=(*result.unmet_crash(expect, outcome, crashes), *missed),
        title=title,
        crashes=tuple(crashes),
        reason=reason,
        failure=steps.failure,
        diagnostics=steps.built.diagnostics,
        taint_before=steps.taint[0],
        taint_after=steps.taint[1],
        tainted_by=dict(steps.tainted_by),
        modules_before=steps.modules[0],
        modules_after=steps.modules[1],
        log=tuple(r for r in log if r.from_kernel),
        lost_records=steps.witness.lost_records,
        steps=tuple(steps.steps),
        guest_survived=steps.alive,
        console="console.log",
        kernel_log="dmesg.txt",
        build_log="build.log",
    )


def _doubts(steps: Steps, found: Sequence[Crash]) -> list[tuple[str, str]]:
    """What keeps a run from being a pass though nobody has complained: outcomes, each with a sentence."""
    doubts = []
    if steps.alive and not steps.witness.whole:
        sentence = (
            "the guest's console fell silent, and its kernel's own log does not reach back to the run's beginning: "
            "what the kernel said in between is not known"
        )
        doubts.append(("lost", sentence))
    for flag in find_unexplained(steps.taint[1] & ~steps.taint[0], {outcome_of(crash) for crash in found}):
        step = steps.tainted_by.get(flag.bit, "?")
        sentence = f"taint {flag.name} ({flag.meaning}) was set in step '{step}', and nothing in the log says why"
        doubts.append((flag.outcome or "warning", sentence))
    return doubts


def _dumped(host: Host, lab: Lab, spec: GuestSpec, steps: Steps, draft: RunResult, report: Report) -> str | None:
    """The name of the guest's memory in the run's folder, where it was wanted and could be had."""
    wanted = lab.vmcore == "always" or (lab.vmcore == "auto" and draft.outcome in ("panic", "hang"))
    if not wanted or draft.directory is None or "lost" in steps.outcomes:
        return None
    limit, name = lab.vmcore_max, "vmcore"
    try:
        with Stage(report, spec.name, "keeping its memory"):
            guest = steps.guest
            if hang.dump_memory(host, guest.record, guest.files, draft.directory / name, spec.memory, limit):
                return name
        report(Note(spec.name, f"its memory was not kept: the dump is beyond vmcore_max, {limit >> 20} MiB"))
    except LabError as error:
        report(Note(spec.name, f"its memory was not kept: {error.message}"))
    return None


def _outcomes(steps: Steps, crashes: Sequence[Crash]) -> list[str]:
    """What the steps came to and what the kernel said, less what the one only says because of the other."""
    outcomes = [*steps.outcomes, *(outcome_of(c) for c in crashes)]
    explained: set[str] = set()
    if crashes:
        explained.add("lost")
    if "oops" in outcomes and not any(c.kind == "hang" for c in crashes):
        explained.add("hang")  # the step did not end because its task was killed
    return [outcome for outcome in outcomes if outcome not in explained]


def _state_left(steps: Steps, outcome: str, crashes: Sequence[Crash]) -> tuple[str, str]:
    """In which state the guest is now, and why."""
    harmless = outcome in ("pass", "build-failed") or (outcome in ("test-failed", "load-failed") and not crashes)
    if not harmless:
        return "dirty", f"the last run ended in {outcome}"
    if steps.witness.deaf:
        return "dirty", "its console fell silent in the last run"
    if steps.failure == "not-listed":
        return "dirty", "insmod did not load a module and said that it had"
    if not steps.left_loaded:
        return "clean", ""
    return ("kept", "") if steps.options.keep or steps.wanted.keep else ("dirty", "a module was left loaded")


def _write_evidence(folder: Path, steps: Steps) -> None:
    (folder / "console.log").write_bytes(steps.witness.raw())
    texts = {
        "dmesg.txt": console.dmesg(steps.witness.records),
        "build.log": steps.built.log,
        "sections.txt": _sections(steps),
        "registers.txt": _printable_lines(steps.inside.registers),
        "tasks.txt": _printable_lines("\n".join(steps.inside.tasks)),
        "exercise.log": _printable_lines(steps.exercise_log),
    }
    for name, text in texts.items():
        if text or name in ("dmesg.txt", "build.log"):
            (folder / name).write_text(text, encoding="utf-8", errors="replace")


def _sections(steps: Steps) -> str:
    """Where the modules were in the guest's memory, as gdb and crash ask for it."""
    return "".join(
        f"{module} {name} 0x{at:x}\n" for module, places in steps.sections.items() for name, at in places.items()
    )


def _printable_lines(text: str) -> str:
    """A program's output as lines that are safe to show."""
    return "".join(f"{printable(line)}\n" for line in text.splitlines())


def shown_source(lab: Lab, wanted: Module) -> str:
    """The module's folder as people are told of it: relative to the lab's where it lies beneath."""
    place = lab.locate(wanted.source)
    with contextlib.suppress(ValueError):
        return str(PurePosixPath(place.resolve().relative_to(lab.folder.resolve())))
    return str(place)
