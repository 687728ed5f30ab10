"""A run switches the detectors on before the load, and a leak that a check finds is a finding with its line."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from kmlab.common.events import Deadline
from kmlab.host.channel.ssh import Answer
from kmlab.kernel.detectors.detectors import DETECTORS, Detector
from kmlab.run.context.results import ArmStepResult, Baseline, Results
from kmlab.run.steps.arm import arm
from kmlab.run.steps.checks.leak_check import check_leaks
from kmlab.run.steps.checks.slab_check import check_slabs


@dataclass
class Guest:
    """A guest that notes what it was asked."""

    lines: list[str] = field(default_factory=list)

    def run(self, line: str, deadline: Deadline) -> Answer:
        self.lines.append(line)
        return Answer(0, b"", b"")


def context(guest: Guest) -> Any:
    return SimpleNamespace(
        guest=guest, options=SimpleNamespace(steps=("load", "unload")), deadline=Deadline, usable=True
    )


def so_far(*detectors: Detector, unused: bool = True) -> Any:
    names = frozenset(detector.sign for detector in detectors)
    results = Results((Baseline("baseline", names=names, unused=unused),))
    return SimpleNamespace(
        build=SimpleNamespace(ok=True), baseline=results.baseline, detectors=(), has_detector=lambda name: False
    )


def test_a_kernel_without_detectors_is_asked_nothing() -> None:
    guest = Guest()
    assert arm(context(guest), so_far()) == ()
    assert check_slabs(context(guest), so_far()) == ()
    assert check_leaks(context(guest), so_far()) == ()
    assert guest.lines == []


def test_all_detectors_are_switched_on_by_one_line() -> None:
    guest = Guest()
    (result,) = arm(context(guest), so_far(*DETECTORS))
    assert isinstance(result, ArmStepResult)
    assert result.detectors == DETECTORS and not result.shown
    (line,) = guest.lines
    assert line.index("sample_interval") < line.index("kcsan") < line.index("kmemleak")


def test_in_a_used_guest_what_earlier_modules_left_is_noted_before_the_load() -> None:
    guest = Guest()
    arm(context(guest), so_far(*DETECTORS, unused=False))
    assert "alloc_traces" in guest.lines[-1]
