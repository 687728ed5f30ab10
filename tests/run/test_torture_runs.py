"""A torture runs all cases; after one that went wrong it goes on with the next in a fresh guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kmlab.common.errors import ConfigError, LabError
from kmlab.config.lab import Lab
from kmlab.config.run_options import Options, TorturePlan
from kmlab.run import torture_runs
from kmlab.run.torture.groups import FAIL_NTH
from kmlab.run.torture_runs import CaseResult
from kmlab.testing import Act, FakeModule, World
from tests.story import OOPS, record_of

EVERYTHING = TorturePlan()
Torture = Callable[..., list[CaseResult]]


@pytest.fixture
def torture(lab: Lab, world: World) -> Torture:
    """Torture examples/hello, which behaves as told in the cases that are named."""

    def torture(
        torture: dict[str, Act] | None = None, plan: TorturePlan = TorturePlan(), **acts: Any
    ) -> list[CaseResult]:
        world.modules["hello"] = FakeModule(name="hello", torture=torture or {}, **acts)
        module = lab.module_for(lab.folder / "hello")
        return torture_runs.torture(world.host, lab, [lab.guest("debian")], module, Options(), plan, lambda event: None)

    return torture


def outcomes(results: list[CaseResult]) -> dict[str, str]:
    return {case.name: case.outcome for case in results}


def test_a_module_without_a_bug_passes_all_cases(torture: Torture, lab: Lab, world: World) -> None:
    world.files[FAIL_NTH] = ""
    left = {f"fail-{point}": Act(output=f"points left: {0 if point < 4 else 1}\n") for point in range(1, 5)}
    results = torture(left)
    assert set(outcomes(results).values()) == {"pass", "skipped"}
    assert [case.name for case in results if case.group == "faults"] == ["fail-1", "fail-2", "fail-3"]
    assert [case.name for case in results if case.outcome == "skipped"] == ["memory", "cpus", "fuzz"]
    assert torture_runs.exit_code(results) == 0
    assert world.asked.count("restore") == 2, "the ordinary run, and all cases together"
    assert record_of(lab).state == "dirty"


def test_after_a_case_that_went_wrong_the_rest_runs_in_a_fresh_guest(torture: Torture, world: World) -> None:
    results = torture({"signals": Act(kernel=OOPS), "unload-open": Act(code=3)})
    assert outcomes(results)["signals"] == "oops"
    assert outcomes(results)["unload-open"] == "unload-failed"
    assert outcomes(results)["unbind"] == outcomes(results)["cycle"] == "pass"
    assert len(outcomes(results)) == len(results)
    assert world.asked.count("restore") == 4
    assert torture_runs.exit_code(results) == 1
    text = "\n".join(torture_runs.lines(results))
    assert "OOPS signals: signals in the middle of the exercise" in text
    assert "NULL pointer dereference" in text and "could not be unloaded within 5 s" in text
    assert "memory      left out: the guest's kernel has no" in text


def test_a_guest_that_dies_in_a_case_is_that_case_s(torture: Torture) -> None:
    results = torture({"unload-busy": Act(ends="lost")})
    assert outcomes(results)["unload-busy"] == "lost"
    assert outcomes(results)["signals"] == "pass"


def test_a_module_whose_ordinary_run_fails_is_not_tortured(torture: Torture) -> None:
    results = torture(load=Act(code=1, error="insmod: ERROR: could not insert module ./hello.ko: No such device\n"))
    assert outcomes(results) == {"plain": "load-failed"}
    assert torture_runs.exit_code(results) == 1


def test_one_case_can_run_alone(torture: Torture) -> None:
    assert outcomes(torture(plan=TorturePlan(only="unload-busy"))) == {"unload-busy": "pass"}
    assert outcomes(torture(plan=TorturePlan(groups=("cycle",)))) == {"cycle": "pass"}


def test_no_case_begins_after_the_time_is_up(torture: Torture) -> None:
    assert outcomes(torture(plan=TorturePlan(until=0.0))) == {"plain": "pass", "memory": "skipped"} | {
        "faults": "skipped",
        "cpus": "skipped",
        "fuzz": "skipped",
    }


def test_a_guest_that_does_not_start_is_no_case_s_fault(torture: Torture, world: World) -> None:
    world.refusals["restore"] = world.refusals["start"] = LabError("no memory")
    results = torture()
    assert outcomes(results) == {"plain": "error"}
    assert torture_runs.exit_code(results) == 3


def test_an_unknown_group_is_one_error() -> None:
    with pytest.raises(ConfigError, match="unknown group"):
        torture_runs.check_plan(TorturePlan(groups=("cycles",)))
