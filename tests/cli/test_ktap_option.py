"""`kmlab test --ktap` judges a saved log: cases on the screen, an exit code, JSON and every report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kmlab.report.formats import FORMATS
from tests import documents
from tests.program import Ended, Program

GOOD = "TAP version 13\n1..2\nok 1 - a\nok 2 - b # SKIP no b\n"
BAD = "KTAP version 1\n1..2\nok 1 a\n# b: EXPECTATION FAILED at larva.c:2\n    Expected 1\nnot ok 2 b\n"


@pytest.fixture
def ktap(tmp_path: Path) -> Program:
    (tmp_path / "good.tap").write_text(GOOD)
    (tmp_path / "bad.log").write_text(BAD)
    (tmp_path / "cut.log").write_text(GOOD[:-20])
    (tmp_path / "larva.c").write_text("int one;\nint two;\nint three;\n")
    return Program(tmp_path, ("test", "--ktap"))


def test_cases_that_pass_end_with_0(ktap: Program) -> None:
    assert ktap("good.tap") == Ended(
        0,
        "  ok        a\n  skipped   b: no b\n  2 test cases: 1 passed, 1 skipped\n"
        "PASS  good.tap on saved-log: 2 test cases: 1 passed, 1 skipped  0.0 s\n",
        "",
    )


def test_a_case_that_fails_ends_with_1_and_has_its_source(ktap: Program) -> None:
    ended = ktap("bad.log")
    assert ended.code == 1
    assert ended.out.splitlines() == [
        "  ok        a",
        "  FAILED    b: larva.c:2: Expected 1",
        "  2 test cases: 1 passed, 1 failed",
        "  ./larva.c:2: error: b: Expected 1",
        "         1  int one;",
        "    >    2  int two;",
        "         3  int three;",
        "TEST-FAILED  bad.log on saved-log: 1 of 2 test cases failed: b: Expected 1 (NOT as expected: pass)  0.0 s",
    ]


def test_an_output_that_is_cut_ends_with_1(ktap: Program) -> None:
    ended = ktap("cut.log")
    assert (ended.code, "INCOMPLETE" in ended.out) == (1, True)


def test_a_pipe_is_read(ktap: Program) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kmlab", "test", "--ktap", "-"], input=BAD, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "TEST-FAILED  stdin on saved-log" in done.stdout) == (1, True)


def test_json_is_the_document_of_a_run(ktap: Program) -> None:
    ended = ktap("bad.log", "--json")
    documents.check(ended.out)
    (result,) = json.loads(ended.out)["results"]
    assert (result["module"], result["outcome"], result["ok"]) == ("bad.log", "test-failed", False)
    assert [(case["name"], case["status"], case["line"]) for case in result["tests"]["cases"]] == [
        ("a", "passed", None),
        ("b", "failed", 2),
    ]


def test_every_report_is_written(ktap: Program) -> None:
    names = [f"report{ending}" if ending[0] == "." else ending for f in FORMATS for ending in f.endings[:1]]
    ended = ktap("bad.log", *(word for name in names for word in ("--report", name)), "--github")
    assert ended.code == 1
    assert "::error file=./larva.c,line=2,title=b on saved-log::Expected 1" in ended.out
    for name in names:
        assert "Expected 1" in (ktap.folder / name).read_text(), name


@pytest.mark.parametrize(
    "words", [("absent",), ("larva.c",), ("bad.log", "larva"), ("bad.log", "--all"), ("bad.log", "-j", "2")]
)
def test_bad_words_are_one_error_with_2(ktap: Program, words: tuple[str, ...]) -> None:
    ended = ktap(*words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("kmlab: ")
    assert "Traceback" not in ended.err
