"""Hold the results of a run's steps, as values; a step gets the results of those before it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from kmlab.diagnosis.hang import HangSnapshot
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.detectors.detectors import Detector
from kmlab.kernel.module.bound_devices import Driver
from kmlab.kernel.module.line_counts import LineCounts
from kmlab.kernel.module.modinfo import ModInfo
from kmlab.kernel.module.proc_modules import KernelState
from kmlab.run.build.products import BuildResult

R = TypeVar("R", bound="StepResult")


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step, or one module in a step, and how it ended."""

    name: str
    outcome: str = "ok"
    """ok, failed, hang, lost, skipped."""
    seconds: float = 0.0
    detail: str = ""
    began: float = 0.0
    """Seconds after the run's start."""
    verdict: str | None = None
    """The outcome of the run that this step causes, if it did not go well."""
    reason: str | None = None
    """One sentence, with the remedy."""
    failure: str | None = None
    """The kind of a refused load, as a word for programs."""
    kernel: KernelState | None = None
    """The kernel's state right after it; None if the guest was not asked or did not answer."""
    hang: HangSnapshot | None = None
    """The state of a guest whose step did not end, read from outside."""
    guest_gone: bool = False
    """Whether the guest has become unusable."""
    transcript: str = ""
    """The command that ran in the guest, what it said on stderr, and its exit code."""
    shown: bool = True
    """Whether users see this step; False for one that only later steps need."""


@dataclass(frozen=True, slots=True)
class Baseline(StepResult):
    """The guest's state before anything of the module ran in it."""

    names: frozenset[str] | None = None
    """Its devices, files and file systems (kernel/module/users); None if they are not known."""
    ran_before: tuple[str, ...] = ()
    """Other modules that were run in the guest since it was restored."""
    unused: bool = True
    """Whether nothing was run in it before."""


@dataclass(frozen=True, slots=True)
class BuildStepResult(StepResult):
    """The result of a build, or of signing it."""

    build: BuildResult = field(default_factory=lambda: BuildResult(False, "", ""))
    delivered: Mapping[str, str] = field(default_factory=dict)
    """The files of it that the module's folder in the guest already has: digests by path."""


@dataclass(frozen=True, slots=True)
class ArmStepResult(StepResult):
    """The detectors of the guest's kernel that were switched on for the run."""

    detectors: tuple[Detector, ...] = ()
    slab_traces: str = ""
    """What earlier modules had left allocated; empty in an unused guest."""


@dataclass(frozen=True, slots=True)
class CheckStepResult(StepResult):
    """The result of a check: what it found, in the words of the kernel's log."""

    reports: tuple[str, ...] = ()
    """One for each finding, for the judge of kernel logs."""
    findings: tuple[Crash, ...] = ()
    """Those that no log of the kernel's would say."""


@dataclass(frozen=True, slots=True)
class LineCountsStepResult(StepResult):
    """Which lines of the module ran."""

    line_counts: LineCounts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TortureStepResult(CheckStepResult):
    """The result of one case of a torture, or of a group that the guest's kernel does not allow (`skipped`)."""

    case: str = ""
    """Its name; empty for a group."""
    group: str = ""
    what: str = ""
    """What it does; of a group, why it was left out."""
    failed_call: str = ""
    """The call that was made to fail: function, file and line of the module; empty in other cases."""
    output: str = ""
    """What the program of a case of fuzzing printed, in the guest's words; empty in other cases."""


@dataclass(frozen=True, slots=True)
class LoadStepResult(StepResult):
    """The result of loading one module with insmod."""

    path: str = ""
    info: ModInfo | None = None
    sections: Mapping[str, int] = field(default_factory=dict)
    """Where its sections are in the guest's memory."""
    hidden: bool = False
    """Whether the kernel has loaded it and does not list it."""


@dataclass(frozen=True, slots=True)
class ModprobeStepResult(StepResult):
    """The result of loading a module of the kernel's own that brings devices."""


@dataclass(frozen=True, slots=True)
class ProbeStepResult(StepResult):
    """The drivers that the modules have registered so far, with every device that was bound to them."""

    drivers: tuple[Driver, ...] = ()


@dataclass(frozen=True, slots=True)
class ExerciseStepResult(StepResult):
    """The result of one command of the user's own."""

    log: str = ""
    exercise: str = ""
    """Its name."""
    code: int | None = None
    """Its exit code; None if it did not end."""


@dataclass(frozen=True, slots=True)
class CollectedFile:
    """A file of the guest that a run keeps. Path and content are the guest's words."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class CollectStepResult(StepResult):
    """The files of the guest that a run keeps."""

    files: tuple[CollectedFile, ...] = ()


@dataclass(frozen=True, slots=True)
class KunitStepResult(StepResult):
    """What KUnit keeps of the module's suites."""

    outputs: tuple[str, ...] = ()
    """The results of each suite, as KTAP."""


@dataclass(frozen=True, slots=True)
class UnloadStepResult(StepResult):
    """The result of unloading one module with rmmod."""

    module: str = ""


@dataclass(frozen=True, slots=True)
class DependenciesStepResult(StepResult):
    """The result of unloading the kernel's own modules that were loaded as dependencies."""

    left: tuple[str, ...] = ()
    """Those that are still loaded."""


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a run so far, in order."""

    steps: tuple[StepResult, ...] = ()

    def plus(self, more: Sequence[StepResult]) -> Results:
        """Return these results and more."""
        return Results((*self.steps, *more))

    def all(self, kind: type[R]) -> list[R]:
        """Return the results of one kind."""
        return [step for step in self.steps if isinstance(step, kind)]

    @property
    def shown(self) -> tuple[StepResult, ...]:
        """Return the steps that people see."""
        return tuple(step for step in self.steps if step.shown)

    @property
    def alive(self) -> bool:
        """Return whether the guest can still be used."""
        return not any(step.guest_gone for step in self.steps)

    @property
    def baseline(self) -> Baseline:
        """Return the state before the run; an empty one if the run did not record it."""
        return next(iter(self.all(Baseline)), Baseline("baseline"))

    @property
    def build(self) -> BuildResult:
        """Return the newest build: a signed one replaces the unsigned one before it."""
        return next((step.build for step in reversed(self.all(BuildStepResult))), BuildResult(False, "", ""))

    @property
    def delivered(self) -> Mapping[str, str]:
        """Return the files of the build that the guest already has."""
        return next((step.delivered for step in reversed(self.all(BuildStepResult))), {})

    @property
    def detectors(self) -> tuple[Detector, ...]:
        """Return the detectors that were switched on."""
        return next((step.detectors for step in self.all(ArmStepResult)), ())

    def has_detector(self, name: str) -> bool:
        """Return whether that detector was switched on."""
        return any(detector.name == name for detector in self.detectors)

    @property
    def reports(self) -> list[str]:
        """Return what the checks found, in the words of the kernel's log."""
        return [report for step in self.all(CheckStepResult) for report in step.reports]

    @property
    def findings(self) -> list[Crash]:
        """Return what the checks found and no log of the kernel's would say."""
        return [finding for step in self.all(CheckStepResult) for finding in step.findings]

    @property
    def loaded(self) -> list[LoadStepResult]:
        """Return the modules that are loaded, or were."""
        return [step for step in self.all(LoadStepResult) if step.outcome == "ok"]

    @property
    def left_loaded(self) -> list[str]:
        """Return the names of the modules that were loaded and not unloaded."""
        unloaded = {step.module for step in self.all(UnloadStepResult) if step.outcome == "ok"}
        return [step.info.name for step in self.loaded if step.info and step.info.name not in unloaded]

    @property
    def dependencies(self) -> list[str]:
        """Return the kernel's own modules that came with `modprobe` and the loads, the newest first."""
        before = self.baseline.kernel.modules if self.baseline.kernel else {}
        loads = [*self.all(ModprobeStepResult), *self.loaded]
        after = next((step.kernel.modules for step in reversed(loads) if step.kernel), {})
        came = [name for name in after if name not in before and name not in self.build.names]
        return [name for name in came if re.fullmatch("[A-Za-z0-9_-]{1,64}", name)]

    @property
    def drivers(self) -> tuple[Driver, ...]:
        """Return the drivers of the modules, with every device that was bound to them."""
        return next((step.drivers for step in reversed(self.all(ProbeStepResult))), ())

    @property
    def left_dependencies(self) -> tuple[str, ...]:
        """Return the dependencies that could not be unloaded."""
        return next((step.left for step in self.all(DependenciesStepResult)), ())

    @property
    def sections(self) -> dict[str, Mapping[str, int]]:
        """Return where the sections of each loaded module were."""
        return {step.info.name: step.sections for step in self.loaded if step.info}

    @property
    def kernel(self) -> KernelState | None:
        """Return the kernel's state after the last step; None if it is not known."""
        return self.steps[-1].kernel if self.steps else None

    @property
    def taint(self) -> tuple[int, int]:
        """Return the kernel's taint before the run, and every bit that was seen since."""
        before = self.baseline.kernel.taint if self.baseline.kernel else 0
        after = before
        for step in self.steps:
            after |= step.kernel.taint if step.kernel else 0
        return before, after

    @property
    def tainted_by(self) -> dict[int, str]:
        """Return, for each new taint bit, the step after which it was first seen."""
        steps_by_bit: dict[int, str] = {}
        seen = self.taint[0]
        for step in self.steps:
            new = step.kernel.taint & ~seen if step.kernel else 0
            steps_by_bit |= {bit: step.name for bit in range(new.bit_length()) if new >> bit & 1}
            seen |= new
        return steps_by_bit

    @property
    def modules(self) -> tuple[frozenset[str], frozenset[str] | None]:
        """Return the names of the modules loaded before and after; None if the guest did not answer any more."""
        before = self.baseline.kernel.modules if self.baseline.kernel else {}
        after = self.steps[-1].kernel if self.steps and self.steps[-1].name == AFTERWARDS else None
        return frozenset(before), None if after is None else frozenset(after.modules)

    @property
    def verdicts(self) -> list[str]:
        """Return the outcomes that the steps cause."""
        return [step.verdict for step in self.steps if step.verdict]

    @property
    def reason(self) -> str | None:
        """Return why the first failed step failed; else a remark about a step that went well."""
        failed = [step.reason for step in self.steps if step.verdict and step.reason]
        reason = next(iter([*failed, *(step.reason for step in self.steps if step.reason)]), None)
        skipped = [step.detail for step in self.all(LoadStepResult) if step.outcome == "skipped"]
        if not reason or not skipped:
            return reason
        shown, more = "; ".join(skipped[:_MOST_SKIPPED]), len(skipped) - _MOST_SKIPPED
        return f"{reason}; not tried: {shown}{f', and {more} more' if more > 0 else ''}"

    @property
    def failure(self) -> str | None:
        """Return the kind of the first refused load."""
        return next((step.failure for step in self.steps if step.failure), None)

    @property
    def hang(self) -> HangSnapshot:
        """Return the state of a guest that did not answer."""
        return next((step.hang for step in self.steps if step.hang), HangSnapshot())

    @property
    def transcripts(self) -> str:
        """Return the commands that loaded and unloaded the modules, with what they said."""
        return "".join(step.transcript for step in self.steps)

    @property
    def exercise_log(self) -> str:
        """Return what the exercises printed; of several, each below its name."""
        steps = self.all(ExerciseStepResult)
        if len(steps) < 2:
            return "".join(step.log for step in steps)
        return "".join(f"==> {step.exercise} <==\n{step.log.rstrip()}\n" for step in steps)

    @property
    def collected(self) -> tuple[CollectedFile, ...]:
        """Return the files of the guest that the run keeps."""
        return tuple(file for step in self.all(CollectStepResult) for file in step.files)

    @property
    def line_counts(self) -> LineCounts:
        """Return how often each line of the module ran; empty if the run did not ask for it."""
        return next((step.line_counts for step in self.all(LineCountsStepResult)), {})

    @property
    def exercise_ended_well(self) -> bool:
        """Return whether no exercise hung, died or failed."""
        return all(step.outcome == "ok" for step in self.all(ExerciseStepResult))

    @property
    def kunit_outputs(self) -> tuple[str, ...]:
        """Return what KUnit kept of the module's suites."""
        return tuple(output for step in self.all(KunitStepResult) for output in step.outputs)


_MOST_SKIPPED = 5
"""Modules that were not tried and that a reason names."""
AFTERWARDS = "afterwards"
"""The name of the time after the last step."""
