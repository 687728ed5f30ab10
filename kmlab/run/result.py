"""Hold the result of a run, and write it as the JSON of the public interface (schema kmlab.run/1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, get_args

from kmlab.common.events import Part
from kmlab.config.lab import Expect, Lab, Module, Outcome
from kmlab.config.yaml.reader import nearest, quoted
from kmlab.config.yaml.types import matches
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.patterns import kinds_and_classes
from kmlab.kernel.crash.stack_trace import Frame, Section
from kmlab.kernel.ktap.case_results import Case, TestOutput
from kmlab.kernel.log.records import Record
from kmlab.kernel.log.taint import taint_names
from kmlab.kernel.module.bound_devices import Driver
from kmlab.kernel.module.line_counts import LineCounts
from kmlab.run.context.results import ExerciseStepResult, StepResult
from kmlab.run.documents import CaseReport, CoverageReport, CrashReport, FramePlace, Result, RunDocument, StackSection

WORST_LAST: tuple[str, ...] = get_args(Outcome)
"""Every outcome, in the order in which the worst one seen wins."""
LOG_CAP = 5000
"""Records in the JSON; the files of the run have them all."""


class Collected(NamedTuple):
    """A file of the guest that a run kept."""

    path: str
    """Its path in the guest, printable."""
    name: str
    """Its name in the run's folder `collected`."""
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The result of one module in one guest."""

    module: str
    source: str
    """Its folder as people see it."""
    folder: Path | None = None
    """The absolute path of its folder."""
    guest: str
    kernel: str | None = None
    outcome: str = "pass"
    expect: Expect = field(default_factory=Expect)
    unmet: tuple[str, ...] = ()
    """Expectations beyond the outcome that are not met; a sentence each."""
    title: str | None = None
    crashes: tuple[Crash, ...] = ()
    notes: tuple[str, ...] = ()
    """What the findings mean for the rest of the run; a sentence each."""
    reason: str | None = None
    failure: str | None = None
    """Which kind of refusal a load-failed is: signature, vermagic, unknown-symbol and so on."""
    diagnostics: tuple[Diagnostic, ...] = ()
    tests: TestOutput = field(default_factory=TestOutput)
    """The results of the tests that the module, KUnit or the exercise ran."""
    taint_before: int = 0
    taint_after: int = 0
    tainted_by: Mapping[int, str] = field(default_factory=dict)
    """The step after which each new bit was first seen."""
    modules_before: frozenset[str] = frozenset()
    modules_after: frozenset[str] | None = None
    """None if the guest did not answer any more."""
    log: tuple[Record, ...] = ()
    lost_records: int = 0
    steps: tuple[StepResult, ...] = ()
    guest_parts: tuple[Part, ...] = ()
    """Where the time went until the guest could be used; each begins so many seconds after the run."""
    guest_survived: bool = True
    seconds: float = 0.0
    directory: Path | None = None
    console: str | None = None
    kernel_log: str | None = None
    build_log: str | None = None
    vmcore: str | None = None
    line_counts: LineCounts = field(default_factory=dict)
    """How often each line of the module's files ran, with --coverage."""
    drivers: tuple[Driver, ...] = ()
    """The drivers that the modules registered, with the devices that were bound to them."""
    collected: tuple[Collected, ...] = ()
    """The files of the guest that the run kept."""

    @property
    def ok(self) -> bool:
        wanted = self.expect.outcome
        as_wanted = self.outcome in wanted or (self.outcome == "skipped" and "pass" in wanted)
        return as_wanted and not self.unmet


def worst(outcomes: Iterable[str]) -> str:
    """Return the worst outcome."""
    return max(outcomes, key=WORST_LAST.index, default="pass")


def check_expected(lab: Lab, module: Module) -> None:
    """Raise ConfigError if lab.yaml expects a kind of finding that does not exist."""
    kind, valid = module.expect.kind, kinds_and_classes()
    if kind and kind not in valid:
        hint = nearest(kind, sorted(valid), "kinds and classes")
        raise lab.error(
            ("modules", module.name, "expect", "kind"),
            f"module '{module.name}': unknown value {quoted(kind)} for expect.kind",
            hint,
        )


def unmet_crash(expect: Expect, outcome: str, crashes: Sequence[Crash]) -> list[str]:
    """Return the expectations about findings that are not met; a sentence each."""
    if outcome not in expect.outcome or outcome == "pass":
        return []
    unmet: list[str] = []
    kinds = {word for crash in crashes for word in (crash.kind, crash.class_)}
    functions = {crash.function for crash in crashes} | {f.function for c in crashes for f in c.frames[:1]}
    if expect.kind and expect.kind not in kinds:
        actual = ", ".join(f"{c.kind} ({c.class_})" for c in crashes) or "none"
        unmet.append(f"expected a finding of kind {expect.kind}, found {actual}")
    if expect.function and expect.function not in functions:
        actual = ", ".join(sorted(f for f in functions if f)) or "none"
        unmet.append(f"expected the guilty function {expect.function}, found {actual}")
    return unmet


def unmet_log(expect: Expect, log: Sequence[Record]) -> list[str]:
    """Return the expectations about the kernel's log that are not met; a sentence each."""
    missing = [p for p in expect.log if not any(matches(p, record.text) for record in log)]
    unwanted = [p for p in expect.not_log if any(matches(p, record.text) for record in log)]
    return [
        *(f"expected in the log: {pattern}" for pattern in missing),
        *(f"not expected in the log: {pattern}" for pattern in unwanted),
    ]


def unmet_bound(expect: Expect, drivers: Sequence[Driver]) -> list[str]:
    """Return the expectations about bound devices that are not met; a sentence each."""
    bound = [f"{driver.bus} {device}" for driver in drivers for device in driver.devices]
    missing = [pattern for pattern in expect.bound if not any(matches(pattern, device) for device in bound)]
    return [
        f"expected a driver to be bound to {pattern}; bound: {', '.join(bound) or 'nothing'}" for pattern in missing
    ]


def document(results: Sequence[RunResult], log: int = LOG_CAP) -> RunDocument:
    """Return what `--json` prints, with at most `log` records of each run's log; `--compact` asks for 0."""
    return {"schema": "kmlab.run/1", "results": [to_json(result, log) for result in results]}


def to_json(result: RunResult, log: int = LOG_CAP) -> Result:
    """Return one result as the interface defines it."""
    half = log // 2
    shown = result.log if len(result.log) <= log else (*result.log[:half], *result.log[len(result.log) - half :])
    return {
        "module": result.module,
        "source": result.source,
        "guest": result.guest,
        "kernel": result.kernel,
        "outcome": result.outcome,
        "expected": result.expect.outcome[0] if len(result.expect.outcome) == 1 else list(result.expect.outcome),
        "ok": result.ok,
        "unmet": list(result.unmet),
        "title": result.title,
        "crashes": [crash_to_json(crash) for crash in result.crashes],
        "notes": list(result.notes),
        "reason": result.reason,
        "failure": result.failure,
        "diagnostics": [
            {"file": d.file, "line": d.line, "column": d.column, "severity": d.severity, "message": d.message}
            for d in result.diagnostics
        ],
        "tests": {
            "cases": [_case_to_json(case) for case in result.tests.cases],
            "problems": list(result.tests.problems),
        },
        "taint": {"before": taint_names(result.taint_before), "after": taint_names(result.taint_after)},
        "taint_set_by": {taint_names(1 << bit)[0]: step for bit, step in sorted(result.tainted_by.items())},
        "modules": {
            "before": sorted(result.modules_before),
            "after": None if result.modules_after is None else sorted(result.modules_after),
        },
        "log": [{"time": r.time, "level": r.level, "text": r.text} for r in shown],
        "log_truncated": result.lost_records + len(result.log) - len(shown),
        "steps": [
            {
                "name": s.name,
                "outcome": s.outcome,
                "began": round(s.began, 3),
                "seconds": round(s.seconds, 3),
                "detail": s.detail,
            }
            for s in result.steps
        ],
        "exercises": [
            {"name": s.exercise, "outcome": s.outcome, "code": s.code, "seconds": round(s.seconds, 3)}
            for s in result.steps
            if isinstance(s, ExerciseStepResult)
        ],
        "drivers": [
            {"module": d.module, "bus": d.bus, "name": d.name, "devices": list(d.devices)} for d in result.drivers
        ],
        "collected": [
            {"path": file.path, "file": f"collected/{file.name}", "bytes": file.size} for file in result.collected
        ],
        "coverage": _coverage_to_json(result.line_counts),
        "guest_parts": [
            {"name": part.name, "began": round(part.began, 3), "seconds": round(part.seconds, 3)}
            for part in result.guest_parts
        ],
        "guest_survived": result.guest_survived,
        "seconds": round(result.seconds, 3),
        "artifacts": {
            "directory": str(result.directory) if result.directory else None,
            "console": result.console,
            "kernel_log": result.kernel_log,
            "build_log": result.build_log,
            "vmcore": result.vmcore,
        },
    }


def _coverage_to_json(counts: LineCounts) -> CoverageReport | None:
    lines = [count for numbers in counts.values() for count in numbers.values()]
    return {"lines": len(lines), "ran": sum(count > 0 for count in lines)} if lines else None


def _case_to_json(case: Case) -> CaseReport:
    first = next(iter(case.expectations), None)
    return {
        "suite": case.suite,
        "name": case.name,
        "status": case.status,
        "reason": case.reason,
        "file": first.file if first else None,
        "line": first.line if first else None,
    }


def crash_to_json(crash: Crash) -> CrashReport:
    return {
        "kind": crash.kind,
        "class": crash.class_,
        "title": crash.title,
        "module": crash.module,
        "function": crash.function,
        "file": crash.file,
        "line": crash.line,
        "fingerprint": crash.fingerprint,
        "task": crash.task,
        "cpu": crash.cpu,
        "truncated": crash.truncated,
        "reason": crash.reason,
        "frames": [_frame_to_json(frame) for frame in crash.frames],
        "sections": [_section_to_json(section, crash.module) for section in crash.sections],
    }


def _section_to_json(section: Section, module: str | None) -> StackSection:
    place = section.place(module)
    return {
        "name": section.name,
        "task": section.task,
        "pid": section.pid,
        "cpu": section.cpu,
        "age": section.age,
        "time": section.time,
        "module": place.module if place else None,
        "function": place.name if place else None,
        "file": place.file if place else None,
        "line": place.line if place else None,
        "frames": [_frame_to_json(frame) for frame in section.frames],
    }


def _frame_to_json(frame: Frame) -> FramePlace:
    return {
        "function": frame.function,
        "offset": frame.offset,
        "size": frame.size,
        "module": frame.module,
        "file": frame.file,
        "line": frame.line,
        "inlined": frame.inlined,
    }
