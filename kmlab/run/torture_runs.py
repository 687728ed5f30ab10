"""Torture a module: run it once, then its cases, each time in a fresh guest after the one that went wrong."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmlab.common.errors import ConfigError
from kmlab.common.events import EventSink
from kmlab.common.paths import write_text
from kmlab.config.lab import GuestSpec, Lab, Module
from kmlab.config.run_options import Options, TorturePlan
from kmlab.config.yaml.reader import quoted
from kmlab.config.yaml.schema import nearest
from kmlab.host import Host
from kmlab.run import parallel
from kmlab.run.build.fuzz_headers import read_headers
from kmlab.run.build.sandbox_build import BuildCache
from kmlab.run.build.source_tree import find_tree
from kmlab.run.context.results import TortureStepResult
from kmlab.run.documents import TortureCaseReport, TortureDocument
from kmlab.run.result import RunResult, crash_to_json
from kmlab.run.run import run
from kmlab.run.torture.fuzz import ioctl_names
from kmlab.run.torture.fuzz_calls import FuzzCall, FuzzLog, ends, parse_fuzz_log
from kmlab.run.torture.groups import GROUPS
from kmlab.run.torture.reproducer import c_program

_PLAIN = "plain"
"""The name of the ordinary run that comes first."""
_OUTSIDE = "outside"
"""The name of what went wrong in no case: the guest does not start, or the module is not built."""


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What came of one case."""

    guest: str
    name: str
    group: str
    what: str
    outcome: str
    """pass, skipped, or the outcome of a run that went wrong."""
    seconds: float
    failed_call: str = ""
    run: RunResult | None = None
    """The run in which it went wrong; of `plain`, the ordinary run."""
    reproducer: Path | None = None
    """The C program of a case of fuzzing that went wrong."""
    calls: int = 0
    """How many calls it makes."""
    reproduces: bool = False
    """Whether it went wrong in a fresh guest."""

    @property
    def ok(self) -> bool:
        """Return whether nothing went wrong."""
        return self.outcome in ("pass", "skipped") if self.name != _PLAIN else self.run is not None and self.run.ok


OnCase = Callable[[CaseResult], None]
OnRun = Callable[[RunResult], None]


def check_plan(plan: TorturePlan) -> None:
    """Raise ConfigError if there is no such group."""
    names = [group.name for group in GROUPS]
    for name in plan.groups:
        if name not in names:
            raise ConfigError(f"--group {quoted(name)}: unknown group", nearest(name, names, "groups"))


def torture(
    host: Host,
    lab: Lab,
    specs: Sequence[GuestSpec],
    module: Module,
    options: Options,
    plan: TorturePlan,
    events: EventSink,
    on_case: OnCase = lambda case: None,
    on_run: OnRun = lambda ended: None,
) -> list[CaseResult]:
    """Torture the module in each of the guests; return the results of all cases, in order.

    `on_case` is called with each case, `on_run` with each run of one or more cases, as they end.
    """
    builds = BuildCache()
    options = dataclasses.replace(options, siblings=len(specs))
    results: dict[str, list[CaseResult]] = {}

    def row(spec: GuestSpec, may_continue: parallel.MayContinue) -> None:
        torture = _Torture(host, lab, spec, module, options, events, builds, on_case, on_run)
        results[spec.name] = torture.results
        torture.run(plan, may_continue)

    parallel.run_in_parallel(host, lab, specs, row, events)
    return [case for spec in specs for case in results[spec.name]]


class _Torture:
    """The torture of a module in one guest."""

    def __init__(
        self,
        host: Host,
        lab: Lab,
        spec: GuestSpec,
        module: Module,
        options: Options,
        events: EventSink,
        builds: BuildCache,
        on_case: OnCase,
        on_run: OnRun,
    ) -> None:
        self.results: list[CaseResult] = []

        runs = itertools.count(2)

        def run_once(options: Options) -> RunResult:
            # The table at the end names the folders of runs that went wrong: they stay until then.
            kept = dataclasses.replace(options, siblings=options.siblings * next(runs))
            ended = run(host, lab, spec, module, kept, events, builds)
            on_run(ended)
            return ended

        self._run = run_once
        self._options = dataclasses.replace(options, fresh=True)
        self._lab, self._module, self._guest = lab, module, spec.name
        self._on_case = on_case

    def run(self, plan: TorturePlan, may_continue: parallel.MayContinue) -> None:
        """Run the cases of a plan; each run ends with the first case that goes wrong."""
        if plan.only is None and not plan.groups and not self._plain():
            return
        done: frozenset[str] = frozenset()
        while may_continue():
            ended = self._run(dataclasses.replace(self._options, torture=dataclasses.replace(plan, done=done)))
            steps = [step for step in ended.steps if isinstance(step, TortureStepResult)]
            self._add_all(steps, ended, done, plan)
            tried = {step.case or step.group for step in steps if step.shown}
            if ended.outcome != "pass" and not any(step.outcome not in ("ok", "skipped") for step in steps):
                # The guest could not be started, or the module could not be built: no case is to blame.
                about = (self._guest, _OUTSIDE, _OUTSIDE, "outside of any case")
                self._add(CaseResult(*about, ended.outcome, ended.seconds, run=ended))
                return
            if not steps or steps[-1].outcome in ("ok", "skipped") or tried <= done:
                return
            done |= tried

    def _plain(self) -> bool:
        ended = self._run(self._options)
        self._add(CaseResult(self._guest, _PLAIN, _PLAIN, "an ordinary run", ended.outcome, ended.seconds, run=ended))
        return self.results[-1].ok

    def _add_all(
        self, steps: Sequence[TortureStepResult], ended: RunResult, done: frozenset[str], plan: TorturePlan
    ) -> None:
        for step in steps:
            name = step.case or step.group
            if name in done or not step.shown:
                continue
            wrong = step.outcome not in ("ok", "skipped")
            outcome = ended.outcome if wrong else "skipped" if step.outcome == "skipped" else "pass"
            case = CaseResult(self._guest, name, step.group, step.what, outcome, step.seconds, step.failed_call)
            if wrong:
                case = dataclasses.replace(case, run=ended)
                case = self._with_reproducer(case, step, plan) if step.group == "fuzz" else case
            self._add(case)

    def _with_reproducer(self, case: CaseResult, step: TortureStepResult, plan: TorturePlan) -> CaseResult:
        """Find the fewest last calls that go wrong again, each time in a fresh guest; write the C program of them.

        A guest that died could not say its last calls: then its calls are drawn again, and each is printed before it is
        made.
        """
        log = self._fuzz_log(step.output)
        if not log.calls and step.guest_gone:
            log = self._fuzz_log(self._run_again(case, plan, careful=True)[1])
        for calls in ends(log.calls):
            if plan.until is not None and time.monotonic() > plan.until:
                break
            again, _ = self._run_again(case, plan, program=self._program(case, calls, log, plan))
            if _is_alike(case.run, again):
                return self._write_reproducer(dataclasses.replace(case, run=again, reproduces=True), calls, log, plan)
        return self._write_reproducer(case, log.calls, log, plan) if log.calls else case

    def _run_again(self, case: CaseResult, plan: TorturePlan, **changes: Any) -> tuple[RunResult, str]:
        """Run one case in a fresh guest, with another plan; return the result, and what the program printed."""
        again = dataclasses.replace(plan, groups=("fuzz",), only=case.name, done=frozenset(), until=None, **changes)
        ended = self._run(dataclasses.replace(self._options, torture=again))
        return ended, "".join(step.output for step in ended.steps if isinstance(step, TortureStepResult))

    def _fuzz_log(self, output: str) -> FuzzLog:
        headers = read_headers(self._lab, self._module, find_tree(self._lab, self._module, self._options))
        return parse_fuzz_log(output, ioctl_names(*headers.values()))

    def _program(self, case: CaseResult, calls: Sequence[FuzzCall], log: FuzzLog, plan: TorturePlan) -> str:
        assert self._module.fuzz is not None
        title = case.run.title if case.run else ""
        about = [
            f"The last {len(calls)} calls of {self._module.name}, torture case {case.name}, seed {plan.seed}: {title}",
            "It went wrong in a fresh guest." if case.reproduces else "It was not seen to go wrong again.",
        ]
        return c_program(self._module.fuzz.device, calls, log.names, about)

    def _write_reproducer(
        self, case: CaseResult, calls: Sequence[FuzzCall], log: FuzzLog, plan: TorturePlan
    ) -> CaseResult:
        """Write the program into the folder of the run that went wrong."""
        if case.run is None or case.run.directory is None:
            return case
        place = case.run.directory / "reproducer.c"
        write_text(place, self._program(case, calls, log, plan))
        return dataclasses.replace(case, reproducer=place, calls=len(calls))

    def _add(self, case: CaseResult) -> None:
        self.results.append(case)
        self._on_case(case)


def _is_alike(first: RunResult | None, again: RunResult) -> bool:
    """Return whether a run went wrong as the first one did: in one of the same functions, if the kernel said one."""
    if again.outcome in ("pass", "build-failed", "error") or first is None:
        return False
    functions = {crash.function for crash in first.crashes}
    return not functions or bool(functions & {crash.function for crash in again.crashes})


def exit_code(results: Sequence[CaseResult]) -> int:
    """Return 3 if the lab itself failed, 1 if a case went wrong, else 0."""
    if any(case.outcome == "error" for case in results):
        return 3
    return 0 if all(case.ok for case in results) else 1


def document(module: Module, results: Sequence[CaseResult], plan: TorturePlan) -> TortureDocument:
    """Return what `--json` prints."""
    return {
        "schema": "kmlab.torture/1",
        "module": module.name,
        "seed": plan.seed,
        "ok": exit_code(results) == 0,
        "cases": [_to_json(case) for case in results],
    }


def _to_json(case: CaseResult) -> TortureCaseReport:
    ended = case.run
    return {
        "guest": case.guest,
        "case": case.name,
        "group": case.group,
        "what": case.what,
        "outcome": case.outcome,
        "ok": case.ok,
        "failed_call": case.failed_call or None,
        "title": ended.title if ended else None,
        "reason": ended.reason if ended else None,
        "crashes": [crash_to_json(crash) for crash in ended.crashes] if ended else [],
        "seconds": round(case.seconds, 3),
        "directory": str(ended.directory) if ended and ended.directory else None,
        "reproducer": str(case.reproducer) if case.reproducer else None,
    }


def lines(results: Sequence[CaseResult]) -> list[str]:
    """Return the table for people: a line for each group, and below it the cases that went wrong."""
    by_group: dict[tuple[str, str], list[CaseResult]] = {}
    for case in results:
        by_group.setdefault((case.guest, case.group), []).append(case)
    several = len({case.guest for case in results}) > 1
    rows: list[str] = []
    for (guest, group), cases in by_group.items():
        name = f"{group} in {guest}" if several else group
        rows.append(f"{name:10}  {_summary(cases)}")
        rows += [f"  {text}" for case in cases if not case.ok for text in _case_lines(case)]
    return rows


def _summary(cases: Sequence[CaseResult]) -> str:
    if cases[0].outcome == "skipped":
        return f"left out: {cases[0].what}"
    wrong = [case for case in cases if not case.ok]
    seconds = sum(case.seconds for case in cases)
    return f"{len(cases) - len(wrong)} of {len(cases)} pass, {seconds:.1f} s"


def _case_lines(case: CaseResult) -> list[str]:
    ended = case.run
    shown = [f"{case.outcome.upper()} {case.name}: {case.what}"]
    if case.failed_call:
        shown.append(f"  the call that failed: {case.failed_call}")
    for crash in ended.crashes if ended else ():
        place = f" at {crash.file}:{crash.line}" if crash.file else ""
        shown.append(f"  {crash.title}: {crash.function or crash.module or '?'}{place}")
    if ended and not ended.crashes and ended.reason:
        shown.append(f"  {ended.reason}")
    if ended and ended.directory:
        shown.append(f"  evidence: {ended.directory}")
    if case.reproducer:
        calls = "1 call" if case.calls == 1 else f"{case.calls} calls"
        shown.append(f"  reproducer.c: {calls}{'' if case.reproduces else ', not seen to go wrong again'}")
    return shown
