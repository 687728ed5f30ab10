"""What a module, KUnit or an exercise prints as the results of tests counts in the verdict of its run."""

from __future__ import annotations

import json

import pytest

from kmlab.config.lab import Lab
from kmlab.run import run
from kmlab.run.result import RunResult
from kmlab.testing import Act, World, module_image
from tests.story import OOPS, PANIC, Go, record_of

SUITE = (
    "    KTAP version 1",
    "    # Subtest: larva",
    "    1..2",
    "    ok 1 larva_eats",
    "    # larva_grows: EXPECTATION FAILED at /var/lib/kmlab/modules/hello/hello.c:7",
    "    Expected size == 3, but",
    "        size == 2 (0x2)",
    "    not ok 2 larva_grows",
    "not ok 1 larva",
)
GOOD_SUITE = (*SUITE[:4], "    ok 2 larva_grows", "ok 1 larva")


def cases(result: RunResult) -> dict[str, str]:
    return {case.full_name: case.status for case in result.tests.cases}


def test_a_module_whose_cases_pass_passes(go: Go) -> None:
    result = go(load=Act(kernel=GOOD_SUITE))
    assert (result.outcome, result.ok, result.reason) == ("pass", True, None)
    assert cases(result) == {"larva.larva_eats": "passed", "larva.larva_grows": "passed"}


def test_a_failing_case_of_a_module_fails_the_run_with_its_place(go: Go, lab: Lab) -> None:
    result = go(load=Act(kernel=SUITE))
    assert (result.outcome, result.ok) == ("test-failed", False)
    assert result.title == "1 of 2 test cases failed: larva.larva_grows: Expected size == 3, but size == 2 (0x2)"
    assert [(d.file, d.line, d.severity, d.message) for d in result.diagnostics] == [
        ("hello.c", 7, "error", "larva.larva_grows: Expected size == 3, but size == 2 (0x2)")
    ]
    assert record_of(lab).state == "clean"
    assert result.directory is not None
    written = json.loads((result.directory / "result.json").read_text())["results"][0]
    assert written["tests"]["cases"][1] == {
        "suite": "larva",
        "name": "larva_grows",
        "status": "failed",
        "reason": "Expected size == 3, but size == 2 (0x2)",
        "file": "hello.c",
        "line": 7,
    }


def test_an_exercise_that_prints_tap_and_ends_with_0_fails_if_a_case_fails(go: Go) -> None:
    load = Act(kernel=("params: count is 3",))
    result = go("params", load=load, exercise=Act(output="TAP version 13\n1..2\nok 1 - reads\nnot ok 2 - writes\n"))
    assert (result.outcome, result.title) == ("test-failed", "1 of 2 test cases failed: writes")
    assert cases(result) == {"reads": "passed", "writes": "failed"}


def test_an_exercise_that_fails_and_prints_tap_has_both_reasons(go: Go) -> None:
    result = go(
        "params", load=Act(kernel=("params: count is 3",)), exercise=Act(code=1, output="1..1\nnot ok 1 - writes\n")
    )
    assert result.outcome == "test-failed"
    assert result.title == "1 of 1 test case failed: writes"
    assert "the exercise `./check.sh` ended with 1" in (result.reason or "")


def test_tests_that_pass_do_not_excuse_an_exercise_that_fails(go: Go) -> None:
    result = go(
        "params", load=Act(kernel=("params: count is 3", *GOOD_SUITE)), exercise=Act(code=1, output="1..1\nok 1 - a\n")
    )
    assert (result.outcome, result.ok) == ("test-failed", False)
    assert result.title == "the exercise `./check.sh` ended with 1: ok 1 - a"


@pytest.mark.parametrize("size", range(1, len(GOOD_SUITE)))
def test_a_suite_that_is_cut_is_no_pass(go: Go, size: int) -> None:
    result = go(load=Act(kernel=GOOD_SUITE[:size]))
    assert result.outcome == "test-failed"
    assert result.tests.problems


def test_a_sentence_that_resembles_a_result_is_none(go: Go) -> None:
    text = ("hello: the weather is not ok 1 bit", "not ok 1 thing", "# Subtest: of a sentence", "1..3 is a range")
    result = go(
        "params", load=Act(kernel=("params: count is 3", *text)), exercise=Act(output="it is not ok\nok then\n")
    )
    assert result.outcome == "pass"
    assert not result.tests


def test_a_program_cannot_print_the_kernel_s_results(go: Go) -> None:
    """Neither on the serial port, nor can it add a line that makes a failure a pass."""
    result = go(load=Act(kernel=SUITE, serial="\nKTAP version 1\n1..1\nok 1 larva\n"))
    assert result.outcome == "test-failed"
    assert cases(result) == {"larva.larva_eats": "passed", "larva.larva_grows": "failed"}


def test_a_crash_names_its_case(go: Go) -> None:
    lines = [*SUITE[:4], "    # larva_grows: initializing", *OOPS]
    result = go(load=Act(kernel=tuple(lines), taint=1 << 7, ends="hangs"), options=run.Options(timeout=0.3))
    assert result.outcome == "oops"
    assert cases(result) == {"larva.larva_eats": "passed", "larva.larva_grows": "crashed"}
    assert "1 of 2 test cases failed: larva.larva_grows crashed: BUG: kernel NULL" in (result.reason or "")
    assert result.title == "BUG: kernel NULL pointer dereference in hello_init"


def test_a_crash_after_which_the_suite_goes_on_is_in_the_case_whose_result_follows(go: Go) -> None:
    result = go(load=Act(kernel=(*SUITE[:4], *OOPS, "    ok 2 larva_grows", "ok 1 larva"), taint=1 << 7))
    assert result.outcome == "oops"
    assert cases(result) == {"larva.larva_eats": "passed", "larva.larva_grows": "crashed"}


def test_a_panic_during_an_exercise_names_the_case_that_its_output_ends_in(go: Go) -> None:
    exercise = Act(output="TAP version 13\n1..2\nok 1 - reads\n", kernel=PANIC, ends="hangs")
    result = go("params", load=Act(kernel=("params: count is 3",)), exercise=exercise)
    assert result.outcome == "panic"
    assert result.title == "Kernel panic: had enough"
    assert cases(result) == {"reads": "passed", "case 2": "crashed"}


def test_kunit_s_own_record_adds_what_the_log_has_not(go: Go, world: World) -> None:
    image = module_image("hello") + b"larva\0pupa\0.kunit_test_suites\0"
    world.files = {
        "/sys/kernel/debug/kunit/larva/results": "\n".join(["KTAP version 1", "1..1", *SUITE]),
        "/sys/kernel/debug/kunit/pupa/results": "KTAP version 1\n1..1\n    # Subtest: pupa\n    1..1\n    not ok 1 a\n"
        "not ok 1 pupa\n",
        "/sys/kernel/debug/kunit/list_sort/results": "KTAP version 1\n1..1\nnot ok 1 of the kernel's\n",
    }
    result = go(images={"hello.ko": image}, load=Act(kernel=GOOD_SUITE))
    assert result.outcome == "test-failed"
    assert cases(result) == {"larva.larva_eats": "passed", "larva.larva_grows": "failed", "pupa.a": "failed"}


def test_only_a_module_with_suites_is_asked_for_them(go: Go, world: World) -> None:
    world.files = {"/sys/kernel/debug/kunit/larva/results": "KTAP version 1\n1..1\nnot ok 1 a\n"}
    assert go().outcome == "pass"
