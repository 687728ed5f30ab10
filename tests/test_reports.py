"""Reports as files: which format a name asks for, what is refused beforehand, and what is written when."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.report import FORMATS, Reports, format_of, report_files, writer
from kmlab.run.result import RunResult
from tests.pages import REPOSITORY, code, rows
from tests.program import Program

PAGE = REPOSITORY / "docs" / "reports.md"
GOOD = RunResult(module="hello", source="examples/hello", guest="debian", seconds=1.25)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: str(format.name))
def test_every_format_of_the_table_writes_text_for_any_number_of_runs(format) -> None:  # type: ignore[no-untyped-def]
    for results in ([], [GOOD], [GOOD, GOOD]):
        assert writer(format).text(results).encode("utf-8")[-1:] == b"\n" or not results


def test_the_ending_of_a_name_chooses_the_format() -> None:
    for each in FORMATS:
        for ending in each.endings:
            assert format_of(Path(f"out/results{ending}")) is each
            assert format_of(Path(f"out/RESULTS{ending.upper()}")) is each


def test_the_page_of_reports_has_every_ending_and_every_title() -> None:
    told = [(tuple(code(cells[0])), cells[1]) for cells in rows(PAGE.read_text("utf-8"))]
    assert told == [(each.endings, each.title) for each in FORMATS]


@pytest.mark.parametrize("name", ["results", "results.pdf", ".xml.gz", "xml"])
def test_an_ending_that_no_format_has_is_one_error_with_all_that_are_known(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(name)) as error:
        format_of(Path(name))
    for each in FORMATS:
        assert f"{each.endings[0]} ({each.title})" in (error.value.hint or "")


def test_two_reports_in_one_file_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="two reports"):
        report_files([tmp_path / "a.xml", tmp_path / "link" / "a.xml"])
    with pytest.raises(ConfigError, match="two reports"):
        report_files([tmp_path / "a.xml"], junit=tmp_path / "a.xml")


def test_all_reports_are_written_at_the_end_in_folders_made_for_them(tmp_path: Path) -> None:
    reports = Reports(report_files([tmp_path / "one" / "a.xml", tmp_path / "b.xml"], junit=tmp_path / "c"))
    reports.add(GOOD)
    assert not (tmp_path / "b.xml").exists()
    assert reports.finish([GOOD]) == []
    assert (tmp_path / "one" / "a.xml").read_text() == (tmp_path / "b.xml").read_text() == (tmp_path / "c").read_text()


def test_what_cannot_be_written_at_the_end_is_told_and_the_others_are_written(tmp_path: Path) -> None:
    reports = Reports(report_files([tmp_path / "one" / "a.xml", tmp_path / "b.xml"]))
    (tmp_path / "one").write_text("in the way")
    (problem,) = reports.finish([GOOD])
    assert "one" in problem.message
    assert (tmp_path / "b.xml").exists()


@pytest.mark.parametrize("command", ["run", "test"])
def test_a_wrong_ending_is_an_error_before_the_lab_is_looked_at(tmp_path: Path, command: str) -> None:
    ended = Program(tmp_path)(command, "hello", "--report", "a.xml", "--report", "b.docx")
    assert ended.code == 2
    assert ended.err.startswith(
        "kmlab: --report b.docx: no report has this ending\n  hint: known endings: .xml (JUnit)"
    )
    assert list(tmp_path.iterdir()) == []


def test_json_lines_grow_as_results_arrive(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text("of an earlier command\n")
    reports = Reports(report_files([tmp_path / "runs.jsonl"]))
    assert (tmp_path / "runs.jsonl").read_text() == ""
    for count in (1, 2):
        reports.add(GOOD)
        lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
        assert [line["results"][0]["module"] for line in lines] == ["hello"] * count
    assert reports.finish([GOOD, GOOD]) == []
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2


def test_json_lines_that_could_not_grow_are_written_whole_at_the_end(tmp_path: Path) -> None:
    reports = Reports(report_files([tmp_path / "runs.jsonl"]))
    (tmp_path / "runs.jsonl").unlink()
    (tmp_path / "runs.jsonl").mkdir()
    reports.add(GOOD)
    (tmp_path / "runs.jsonl").rmdir()
    assert reports.finish([GOOD]) == []
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 1


def test_a_file_that_grows_is_refused_beforehand_where_it_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--report /proc/runs\.jsonl"):
        Reports(report_files([Path("/proc/runs.jsonl")]))


def test_the_json_of_a_report_is_the_document_of_the_interface(tmp_path: Path) -> None:
    said = json.loads(writer(format_of(Path("a.json"))).text([GOOD]))
    assert said["schema"] == "kmlab.run/1"
    assert said["grid"]["rows"] == [{"module": "hello", "cells": [{"outcome": "pass", "ok": True}]}]
