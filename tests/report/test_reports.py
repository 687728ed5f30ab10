"""Reports as files: which format a name asks for, what is refused beforehand, and what is written when."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kmlab.common.errors import ConfigError
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.log.records import Record
from kmlab.report import formats
from kmlab.report.formats import FORMATS, Format, Reports, format_of, report_files, writer
from kmlab.run.result import RunResult
from tests.pages import KMLAB, blocks, code, rows
from tests.places import REPOSITORY
from tests.program import Program
from tests.report.test_report import HOSTILE
from tests.story import whole_result

PAGE = REPOSITORY / "docs" / "reports.md"
GOOD = RunResult(module="hello", source="examples/hello", guest="debian", seconds=1.25)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: str(format.name))
def test_every_format_of_the_table_writes_text_for_any_number_of_runs(format: Format) -> None:
    for results in ([], [GOOD], [GOOD, GOOD]):
        assert writer(format).text(results).encode("utf-8")[-1:] == b"\n" or not results


def test_a_format_is_imported_when_its_report_is_written() -> None:
    package = "kmlab.report.formats"
    code = f"import sys, {package}; print(*(name for name in sys.modules if name.startswith('{package}.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


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


# --- the page of the docs ------------------------------------------------------------------------------------------


def test_the_tap_on_the_page_is_what_the_program_writes() -> None:
    (crash,) = whole_result().crashes
    title = "BUG: kernel NULL pointer dereference in null_read"
    crashed = dataclasses.replace(
        whole_result(), outcome="oops", title=title, crashes=(crash,), kernel="6.1.0-56-cloud-amd64", seconds=3.2
    )
    assert blocks(PAGE, "tap") == [writer(format_of(Path("a.tap"))).text([GOOD, crashed])]


def test_the_workflows_on_the_page_are_yaml_with_commands_that_the_program_takes() -> None:
    for text in blocks(PAGE, "yml"):
        yaml.safe_load(text)
        (line,) = re.findall(r"(?:run|script): (kmlab .*)", text)
        command, words = KMLAB.commands["test"], line.split()[2:]
        context = command.make_context("test", words)
        assert report_files(context.params["report_paths"])


def test_a_new_format_is_the_file_and_the_line_that_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, line = blocks(PAGE, "python")
    (tmp_path / "csv.py").write_text(file)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, eval(line, vars(formats))))
    try:
        written = Reports(report_files([tmp_path / "runs.csv"]))
        assert written.finish([GOOD]) == []
    finally:
        sys.modules.pop("kmlab.report.formats.csv", None)
    assert (tmp_path / "runs.csv").read_text() == "hello,debian,pass\n"


# --- hostile text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: str(format.name))
def test_no_format_fails_on_text_from_a_guest_or_lets_it_control_a_terminal(format: Format) -> None:
    (crash,) = whole_result().crashes
    for word in (HOSTILE, "\ud800", "\0", "x" * 100_000, "\u2066\u202e", "\x9b31m", ""):
        frame = crash.frames[0]._replace(function=word, module=word, file=word)
        hostile = dataclasses.replace(crash, title=word, function=word, file=word, task=word, frames=(frame,))
        result = dataclasses.replace(
            whole_result(),
            module=word,
            source=word,
            guest=word,
            kernel=word,
            title=word,
            reason=word,
            outcome="oops",
            unmet=(word,),
            crashes=(hostile,),
            diagnostics=(Diagnostic(word, 3, None, "error", word),),
            log=(Record(None, None, word, None, 0),),
        )
        text = writer(format).text([result, result])
        assert not [c for c in text if c not in "\n\t" and not c.isprintable()]
        text.encode("utf-8")
