"""Results for other machines: what they read stays well-formed whatever a guest said."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.config.lab import Expect
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.log.records import Record
from kmlab.report.finding import summary
from kmlab.report.formats import junit, report_files
from kmlab.report.formats.github import github_annotations
from kmlab.run.result import RunResult

GOOD = RunResult(module="hello", source="examples/hello", guest="debian", seconds=1.25)
BAD = dataclasses.replace(GOOD, module="null", outcome="oops", title="BUG: in null_read", reason="a reason")
BROKEN = dataclasses.replace(GOOD, module="lab", outcome="error", title="no room")
HOSTILE = "]]><x>&\"' \x1b[31m \x00 \u202e \udcff\r\n::error::owned %0A"


def suite(*results: RunResult) -> ET.Element:
    return ET.fromstring(junit.text(results).encode())


def test_where_junit_cannot_be_written_is_said_beforehand(tmp_path: Path) -> None:
    report_files([], tmp_path / "junit.xml")
    report_files([], tmp_path / "new" / "folder" / "junit.xml")
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path, tmp_path / "file" / "junit.xml", Path("/proc/junit.xml")):
        with pytest.raises(ConfigError, match=r"--junit .*: cannot be written"):
            report_files([], wrong)


def test_junit_counts_failures_and_errors_apart() -> None:
    root = suite(GOOD, BAD, BROKEN)
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "time")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "time": "3.750",
    }
    assert [(c.get("classname"), c.get("name"), c.get("time")) for c in root.findall("testcase")] == [
        ("debian", "hello", "1.250"),
        ("debian", "null", "1.250"),
        ("debian", "lab", "1.250"),
    ]
    failure, error = root.find("testcase/failure"), root.find("testcase/error")
    assert failure is not None and error is not None
    assert (failure.get("type"), failure.get("message")) == ("oops", "oops: BUG: in null_read")
    assert (error.get("type"), error.text) == ("error", "error: no room")


def test_a_crash_that_was_expected_is_no_failure() -> None:
    expected = dataclasses.replace(BAD, expect=Expect(outcome=("oops",)))
    assert suite(expected).get("failures") == "0"
    assert github_annotations([expected]) == []


def test_junit_holds_the_end_of_the_log() -> None:
    log = tuple(Record(float(n), "info", f"line {n}", None, 0) for n in range(300))
    said = suite(dataclasses.replace(GOOD, log=log)).findtext("testcase/system-out") or ""
    lines = said.splitlines()
    assert len(lines) == 200
    assert lines[-1] == "[  299.000000] line 299"


def test_hostile_text_leaves_junit_well_formed() -> None:
    log = (Record(1.0, "info", HOSTILE, None, 0),)
    result = dataclasses.replace(BAD, module=HOSTILE, guest=HOSTILE, title=HOSTILE, log=log)
    root = suite(result)
    assert len(root.findall("testcase")) == 1
    assert root.find("testcase/x") is None
    assert "<x>&" in (root.findtext("testcase/system-out") or "")


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\ufffe", "\ufdd0", "\udcff", "\x85"])
def test_no_character_that_xml_forbids_is_written(character: str) -> None:
    result = dataclasses.replace(BAD, title=f"a{character}b")
    failure = suite(result).find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "oops: ab"


def test_an_annotation_points_to_the_module_s_own_line() -> None:
    diagnostics = (Diagnostic(file="null.c", line=23, column=1, severity="error", message="no"),)
    result = dataclasses.replace(BAD, outcome="build-failed", diagnostics=diagnostics)
    assert github_annotations([GOOD, result]) == [
        "::error file=examples/hello/null.c,line=23,title=null on debian::build-failed: BUG: in null_read"
    ]


def test_an_annotation_without_a_place_names_only_the_run() -> None:
    assert github_annotations([BROKEN]) == ["::error title=lab on debian::error: no room"]


def test_hostile_text_cannot_begin_a_command_of_its_own() -> None:
    result = dataclasses.replace(BAD, module=HOSTILE, title=HOSTILE)
    (line,) = github_annotations([result])
    assert "\n" not in line and "\r" not in line
    assert line.startswith("::error title=")
    assert "%250A" in line


def test_a_summary_says_what_was_missed() -> None:
    result = dataclasses.replace(GOOD, unmet=("expected in the log: a", "not expected in the log: b"))
    assert summary(result) == "pass: expected in the log: a; not expected in the log: b"
    assert summary(dataclasses.replace(BAD, title=None)) == "oops: a reason"
