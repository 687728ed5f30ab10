"""Every report shows the cases of a run's tests, and what is expected raises no alarm."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET

import pytest

from kmlab.config.lab import Expect
from kmlab.kernel.ktap.case_results import Case, Expectation, TestOutput
from kmlab.kernel.ktap.output_reader import read_test_output
from kmlab.report.case_lines import case_lines
from kmlab.report.finding import findings
from kmlab.report.formats import FORMATS, Format, junit, tap, writer
from kmlab.report.formats.github import github_annotations
from kmlab.run.case_collection import expectation_diagnostics
from kmlab.run.result import RunResult
from tests.report.test_report import HOSTILE

TESTS = TestOutput(
    cases=(
        Case(("larva", "eats"), "passed"),
        Case(("larva", "grows"), "failed", "Expected 1", (Expectation("larva.c", 7, "Expected 1"),), ("a line",)),
        Case(("larva", "flies"), "skipped", "no wings"),
        Case(("larva", "C# code"), "expected-failure", "known"),
        Case(("leaves",), "crashed", "BUG: in leaves"),
    ),
    problems=("pupa has 1 of 2 results",),
)
BAD = RunResult(
    module="larva",
    source="examples/larva",
    guest="debian",
    outcome="test-failed",
    title=TESTS.summary,
    reason=TESTS.summary,
    tests=TESTS,
    diagnostics=expectation_diagnostics(TESTS),
)
EXPECTED = dataclasses.replace(BAD, expect=Expect(outcome=("test-failed",)))


def test_the_summary_names_what_failed() -> None:
    assert TESTS.summary == (
        "2 of 5 test cases failed: larva.grows: Expected 1, leaves crashed: BUG: in leaves; pupa has 1 of 2 results"
    )


def test_a_terminal_shows_each_case_and_the_counts() -> None:
    assert list(case_lines(TESTS)) == [
        "  ok        larva.eats",
        "  FAILED    larva.grows: larva.c:7: Expected 1",
        "  skipped   larva.flies: no wings",
        "  fails as known larva.C# code: known",
        "  CRASHED   leaves: BUG: in leaves",
        "  INCOMPLETE  pupa has 1 of 2 results",
        "  5 test cases: 1 passed, 1 failed, 1 skipped, 1 expected-failure, 1 crashed",
    ]
    assert len(list(case_lines(TESTS, only_bad=True))) == 4


def test_a_terminal_is_not_flooded_with_cases_that_passed() -> None:
    many = TestOutput((*(Case((f"case {n}",), "passed") for n in range(500)), TESTS.cases[1]))
    assert list(case_lines(many)) == [
        "  FAILED    larva.grows: larva.c:7: Expected 1",
        "  501 test cases: 500 passed, 1 failed",
    ]


def test_junit_has_an_element_for_each_case() -> None:
    root = ET.fromstring(junit.text([BAD]).encode())
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "3",
        "errors": "0",
        "skipped": "2",
    }
    found = [(c.get("classname"), c.get("name"), [child.tag for child in c]) for c in root.findall("testcase")]
    assert found == [
        ("debian", "larva", ["failure", "system-out"]),
        ("debian.larva.larva", "eats", []),
        ("debian.larva.larva", "grows", ["failure", "system-out"]),
        ("debian.larva.larva", "flies", ["skipped"]),
        ("debian.larva.larva", "C# code", ["skipped"]),
        ("debian.larva", "leaves", ["failure"]),
    ]
    assert "larva.c:7: Expected 1" in [each.text for each in root.iter("failure")]


def test_a_failure_that_is_expected_is_none_in_any_report() -> None:
    root = ET.fromstring(junit.text([EXPECTED]).encode())
    assert (root.get("failures"), root.get("skipped")) == ("0", "4")
    assert root.find("testcase/failure") is None
    assert findings([EXPECTED]) == []
    assert github_annotations([EXPECTED]) == []
    again = read_test_output(tap.text([EXPECTED]).split("\n"), program=True)
    assert not again.bad


def test_tap_has_a_subtest_that_reads_back() -> None:
    again = read_test_output(tap.text([BAD]).split("\n"), program=True)
    run = "larva on debian: test-failed"
    assert {case.full_name: case.status for case in again.cases} == {
        f"{run}.larva.eats": "passed",
        f"{run}.larva.grows": "failed",
        f"{run}.larva.flies": "skipped",
        f"{run}.larva.C# code": "expected-failure",
        f"{run}.leaves": "failed",
    }
    assert again.problems == ()


def test_findings_have_the_place_of_an_expectation_and_a_sentence_for_the_rest() -> None:
    found = [(f.rule, f.file, f.line, f.message) for f in findings([BAD])]
    assert found == [
        ("failed-expectation", "larva.c", 7, "larva.grows: Expected 1"),
        ("failed-case", None, None, "larva: leaves crashed: BUG: in leaves"),
        ("failed-case", None, None, "larva: pupa has 1 of 2 results"),
    ]


def test_github_annotates_the_line_of_each_case() -> None:
    lines = github_annotations([BAD])
    assert lines[0] == "::error file=examples/larva/larva.c,line=7,title=larva.grows on debian::Expected 1"
    assert lines[1] == "::error title=leaves on debian::BUG%3A in leaves".replace("%3A", ":")
    assert len(lines) == 3


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: str(format.name))
def test_every_format_shows_the_cases(format: Format) -> None:
    text = writer(format).text([BAD])
    assert "grows" in text
    assert "Expected 1" in text


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: str(format.name))
def test_hostile_names_leave_every_format_well_formed(format: Format) -> None:
    case = Case((HOSTILE, HOSTILE), "failed", HOSTILE, (Expectation(HOSTILE, 1, HOSTILE),), (HOSTILE,))
    tests = TestOutput((case, Case((HOSTILE,), "passed")), (HOSTILE,))
    text = writer(format).text([dataclasses.replace(BAD, tests=tests, diagnostics=expectation_diagnostics(tests))])
    text.encode("utf-8")
    assert "\x1b" not in text and "\u202e" not in text and "\x00" not in text
    if format.name == "junit":
        assert len(ET.fromstring(text.encode()).findall("testcase")) == 3
    if format.name in ("sarif", "gitlab", "document", "jsonl"):
        assert json.loads(text)
    if format.name == "tap":
        again = read_test_output(text.split("\n"), program=True)
        assert [case.status for case in again.cases] == ["failed", "passed"]
