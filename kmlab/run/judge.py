"""Judge a run: a pure function of its steps' results and of the kernel's log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kmlab.config.lab import Expect
from kmlab.config.yaml.types import matches
from kmlab.diagnosis.console import RunLog
from kmlab.kernel.crash.crash import Crash, benign_note, lockdep_off, outcome_of
from kmlab.kernel.ktap.case_results import TestOutput
from kmlab.kernel.log.taint import find_unexplained
from kmlab.run.context.results import Results, TortureStepResult
from kmlab.run.result import unmet_bound, unmet_crash, unmet_log, worst


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a run, with its title, reason and findings."""

    outcome: str
    title: str | None
    reason: str | None
    crashes: tuple[Crash, ...]
    """The findings that count: none that lab.yaml allows."""
    unmet: tuple[str, ...]
    """What was expected and did not happen; a sentence each."""
    notes: tuple[str, ...] = ()
    """What the findings mean for the rest of the run, those that lab.yaml allows, too."""
    lockdep_off: bool = False
    """lockdep has turned itself off, so that it finds nothing in the next run."""


def judge(
    results: Results,
    log: RunLog,
    crashes: Sequence[Crash],
    tests: TestOutput,
    expect: Expect,
    allow: Sequence[str],
    patience: float,
    benign: Sequence[Crash] = (),
) -> Verdict:
    """Judge a run. `crashes` are the findings in `log`; `patience` is the seconds that a step was given.

    `benign` are the kernel's reports that are no bug of a module's. What a test prints can make a run worse, and never
    better.
    """
    allowed = [c for c in crashes if outcome_of(c) == "warning" and any(matches(p, c.title) for p in allow)]
    counted = tuple(crash for crash in crashes if crash not in allowed)
    missed = [] if results.build.skipped else unmet_log(expect, log.records)
    if results.loaded:
        missed += unmet_bound(expect, results.drivers)
    doubts = _doubts(results, log, crashes)
    outcomes = [*_outcomes(results, counted), *(outcome for outcome, _ in doubts)]
    outcome = worst([*outcomes, *(["test-failed"] if missed or tests.bad else [])])
    stuck = next((step for step in results.shown if step.outcome in ("failed", "hang", "lost")), None)
    reason = results.reason
    if outcome == "hang" and not counted and stuck:
        reason = reason or f"step '{stuck.name}' did not end within {patience:.0f} s"
    failed = tests.summary if tests.bad else None
    sentences = [failed, reason] if outcome == "test-failed" else [reason, failed]
    reason = "; ".join(filter(None, [*sentences, *(sentence for _, sentence in doubts)])) or None
    title = counted[0].title if counted else None
    if outcome == "test-failed" and failed:
        title = failed
    if title is None and outcome != "pass":
        title = reason or (f"{outcome} in step '{stuck.name}'" if stuck else next(iter(missed), outcome))
    off = lockdep_off([*crashes, *benign])
    notes = (*map(benign_note, benign), *([off] if off else []))
    unmet = (*unmet_crash(expect, outcome, counted), *missed)
    return Verdict(outcome, title, reason, counted, unmet, notes, lockdep_off=off is not None)


def state_left(results: Results, log: RunLog, verdict: Verdict, keep: bool) -> tuple[str, str]:
    """Return the state that a living guest is left in, and why it is dirty."""
    harmless = verdict.outcome in ("pass", "skipped", "build-failed")
    harmless = harmless or (verdict.outcome in ("test-failed", "load-failed") and not verdict.crashes)
    if not harmless:
        return "dirty", f"the last run ended in {verdict.outcome}"
    if log.deaf:
        return "dirty", "its console fell silent in the last run"
    if verdict.lockdep_off:
        return "dirty", "lockdep turned itself off in the last run"
    if results.all(TortureStepResult):
        return "dirty", "a torture ran in it"
    if results.failure == "not-listed":
        return "dirty", "insmod reported success but did not load a module"
    if results.left_dependencies:
        return "dirty", f"{', '.join(results.left_dependencies)} stayed loaded"
    if not results.left_loaded:
        return "clean", ""
    return ("kept", "") if keep else ("dirty", "a module was left loaded")


def _outcomes(results: Results, crashes: Sequence[Crash]) -> list[str]:
    """Return the outcomes of the steps and of the crashes, without those that merely follow from another one."""
    outcomes = [*results.verdicts, *(outcome_of(crash) for crash in crashes)]
    explained: set[str] = set()
    if crashes:
        explained.add("lost")
    if "oops" in outcomes and not any(crash.kind == "hang" for crash in crashes):
        explained.add("hang")  # the step did not end because its task was killed
    return [outcome for outcome in outcomes if outcome not in explained]


def _doubts(results: Results, log: RunLog, crashes: Sequence[Crash]) -> list[tuple[str, str]]:
    """Return the doubts that keep a run without findings from passing: outcomes, each with a sentence."""
    doubts = []
    if results.alive and not log.whole:
        sentence = (
            "the guest's console fell silent, and the kernel's own log does not reach back to the start of the run: "
            "records in between are missing"
        )
        doubts.append(("lost", sentence))
    before, after = results.taint
    for flag in find_unexplained(after & ~before, {outcome_of(crash) for crash in crashes}):
        step = results.tainted_by.get(flag.bit, "?")
        sentence = f"taint {flag.name} ({flag.meaning}) was set in step '{step}', and nothing in the log explains it"
        doubts.append((flag.outcome or "warning", sentence))
    return doubts
