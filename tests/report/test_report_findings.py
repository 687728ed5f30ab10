"""Findings of many runs as SARIF and GitLab's code quality: each once, on its line, whatever a guest said."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kmlab.config.lab import Expect
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.log.records import Record
from kmlab.report.finding import findings, key_records, path_in_sources, source_lines, source_root
from kmlab.report.formats import gitlab, sarif
from kmlab.run.result import RunResult
from tests.places import TEST_DATA
from tests.report.test_report import BAD, BROKEN, GOOD, HOSTILE
from tests.story import whole_result

SCHEMAS = TEST_DATA / "schemas"
SARIF = jsonschema.Draft4Validator(json.loads((SCHEMAS / "sarif-2.1.0-rtm.5.json").read_text("utf-8")))
SOURCE = "".join(f"line {number}\n" for number in range(1, 40))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with a lab in it, and in that a module."""
    (tmp_path / ".git").mkdir()
    folder = tmp_path / "lab" / "examples" / "oops"
    folder.mkdir(parents=True)
    (folder / "oops.c").write_text(SOURCE)
    (folder / "Makefile").write_text("obj-m := oops.o\n")
    return tmp_path


def crashed(repository: Path, guest: str = "debian", **more: Any) -> RunResult:
    """A run that ended in an oops at oops.c:27."""
    result = dataclasses.replace(whole_result(), outcome="oops", guest=guest, kernel="6.1.0", diagnostics=())
    return dataclasses.replace(result, folder=repository / "lab" / "examples" / "oops", **more)


def log_of(*results: RunResult) -> dict[str, Any]:
    """The only run of a SARIF log that is valid."""
    whole = json.loads(sarif.text(results))
    assert [error.message for error in SARIF.iter_errors(whole)] == []
    (run,) = whole["runs"]
    return dict(run)


def diagnostic(severity: Any, file: str | None = "oops.c", message: str = "no") -> Diagnostic:
    return Diagnostic(file, 12, 6, severity, message)


# --- SARIF ---------------------------------------------------------------------------------------------------------


def test_a_crash_is_a_result_on_the_guilty_line_relative_to_the_repository(repository: Path) -> None:
    run = log_of(crashed(repository))
    (result,) = run["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "lab/examples/oops/oops.c", "uriBaseId": "SRCROOT"}
    assert place["region"] == {"startLine": 27, "snippet": {"text": "line 27"}}
    around = place["contextRegion"]
    assert (around["startLine"], around["endLine"]) == (24, 30)
    assert around["snippet"]["text"].splitlines()[3] == "line 27"
    assert run["originalUriBaseIds"] == {"SRCROOT": {"uri": f"file://{repository}/"}}
    assert (result["ruleId"], result["level"]) == ("null-dereference", "error")
    rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert (rule["id"], rule["name"]) == ("null-dereference", "ModuleNullDereference")
    assert {"fullDescription", "help"} <= set(rule), "GitHub's code scanning wants both"
    assert result["message"]["text"] == "BUG (on debian (6.1.0))"
    (frame,) = result["stacks"][0]["frames"]
    assert frame["location"]["message"]["text"] == "null_read"
    assert frame["location"]["physicalLocation"]["region"] == {"startLine": 27}


def test_one_bug_in_two_guests_is_one_result_that_names_both(repository: Path) -> None:
    (result,) = log_of(crashed(repository), crashed(repository, "noble"))["results"]
    assert "debian (6.1.0), noble (6.1.0)" in result["message"]["text"]


def test_a_run_that_is_as_expected_has_no_results_but_warnings(repository: Path) -> None:
    expected = crashed(repository, expect=Expect(outcome=("oops",)), diagnostics=(diagnostic("warning"),))
    (result,) = log_of(GOOD, expected)["results"]
    assert (result["ruleId"], result["level"]) == ("compiler-warning", "warning")
    assert result["locations"][0]["physicalLocation"]["region"]["startColumn"] == 6


def test_an_error_of_the_lab_is_a_notification_and_no_result() -> None:
    run = log_of(GOOD, BROKEN)
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["message"]["text"] == "lab on debian: error: no room"
    assert run["results"] == []
    assert log_of(GOOD)["invocations"][0]["executionSuccessful"] is True


def test_a_run_without_a_place_is_told_on_the_modules_makefile(repository: Path) -> None:
    result = crashed(repository, outcome="load-failed", crashes=(), title="unknown symbol", failure="unknown-symbol")
    (found,) = log_of(result)["results"]
    assert found["ruleId"] == "load-failed"
    place = found["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "lab/examples/oops/Makefile"
    assert place["region"] == {"startLine": 1}


def test_a_pass_that_should_have_crashed_is_a_finding_of_its_own() -> None:
    (found,) = findings([dataclasses.replace(GOOD, expect=Expect(outcome=("oops", "panic")))])
    assert found.rule == "unmet-expectation"
    assert found.message == "hello: the run passed, but lab.yaml expects oops or panic"


@pytest.mark.parametrize("word", [HOSTILE, "\ud800", "%0A", "../../../../etc/passwd", "/etc/passwd", "a b#?.c", "\0"])
def test_whatever_a_guest_says_the_log_is_valid_and_has_no_place_outside(repository: Path, word: str) -> None:
    (crash,) = whole_result().crashes
    frame = crash.frames[0]._replace(function=word, module=word, file=word)
    crash = dataclasses.replace(crash, title=word, function=word, file=word, fingerprint=word, frames=(frame,))
    said = Diagnostic(word, 3, 1, "error", word)
    result = crashed(repository, module=word, guest=word, title=word, crashes=(crash,), diagnostics=(said,))
    text = sarif.text([result])
    assert text.isascii()
    for found in log_of(result, dataclasses.replace(BROKEN, title=word, guest=word))["results"]:
        uri = found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert uri.startswith("lab/examples/oops/")
        assert not set(' #?\\<>"\n') & set(uri)


# --- GitLab --------------------------------------------------------------------------------------------------------


def test_code_quality_has_the_keys_that_gitlab_needs(repository: Path) -> None:
    listed = json.loads(gitlab.text([crashed(repository, diagnostics=(diagnostic("warning"),)), BROKEN]))
    assert [(each["check_name"], each["severity"], each["location"]) for each in listed] == [
        ("null-dereference", "critical", {"path": "lab/examples/oops/oops.c", "lines": {"begin": 27}}),
        ("compiler-warning", "minor", {"path": "lab/examples/oops/oops.c", "lines": {"begin": 12}}),
    ]
    assert all(each["description"] and len(each["fingerprint"]) == 64 for each in listed)
    assert len({each["fingerprint"] for each in listed}) == 2


def test_hostile_text_leaves_code_quality_well_formed(repository: Path) -> None:
    (crash,) = whole_result().crashes
    result = crashed(repository, crashes=(dataclasses.replace(crash, title=HOSTILE, file="\udcff.c"),))
    text = gitlab.text([result])
    assert text.isascii() and len(json.loads(text)) == 1
    assert "\\u202e" not in text.replace("\\\\u202e", "")


# --- places --------------------------------------------------------------------------------------------------------


def test_the_root_is_the_repository_else_the_lab(repository: Path, tmp_path: Path) -> None:
    result = crashed(repository)
    assert source_root([BAD, result]) == repository
    (repository / ".git").rmdir()
    assert source_root([result]) == repository / "lab"
    assert source_root([dataclasses.replace(result, source=str(result.folder))]) == result.folder
    assert source_root([BAD]) is None


def test_a_header_of_the_kernels_is_no_place_unless_the_module_has_it(repository: Path) -> None:
    result, header = crashed(repository), "include/linux/list.h"
    assert path_in_sources(result, header, repository) is None
    assert result.folder is not None
    (result.folder / "include" / "linux").mkdir(parents=True)
    (result.folder / header).write_text("")
    assert path_in_sources(result, header, repository) == f"lab/examples/oops/{header}"


def test_lines_are_read_from_the_modules_folder_alone(repository: Path) -> None:
    result = crashed(repository)
    assert result.folder is not None
    assert [(line.number, line.marked) for line in source_lines(result, "oops.c", 27, 1)] == [
        (26, False),
        (27, True),
        (28, False),
    ]
    (repository / "secret.c").write_text(SOURCE)
    (result.folder / "link.c").symlink_to(repository / "secret.c")
    os.mkfifo(result.folder / "pipe.c")
    for file in (
        "../../../secret.c",
        str(repository / "secret.c"),
        "link.c",
        "pipe.c",
        ".",
        "gone.c",
        "a\0b",
        "\udcff",
    ):
        assert source_lines(result, file, 2) == [], file
    assert source_lines(result, "oops.c", 4000) == []


def test_the_records_that_tell_most_begin_with_the_crash(repository: Path) -> None:
    log = tuple(Record(float(number), "info", str(number), None, 0) for number in range(100))
    (crash,) = whole_result().crashes
    result = crashed(repository, crashes=(dataclasses.replace(crash, time=40.0),), log=log)
    assert [record.text for record in key_records(result, 3)] == ["40", "41", "42"]
    assert [record.text for record in key_records(dataclasses.replace(result, crashes=()), 3)] == ["97", "98", "99"]


def test_a_module_without_a_makefile_is_told_of_by_its_folder(repository: Path) -> None:
    result = crashed(repository, outcome="load-failed", crashes=())
    assert result.folder is not None
    (result.folder / "Makefile").unlink()
    (found,) = findings([result])
    assert found.path == "lab/examples/oops"
