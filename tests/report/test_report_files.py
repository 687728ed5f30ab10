"""Reports of whole commands, as a person calls them, in a world of fake doors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from kmlab.report.formats import FORMATS
from tests import documents
from tests.places import REPOSITORY
from tests.report.test_report_findings import SARIF

LAB = """\
name: reports
guests:
  debian: {image: debian-12, memory: 256M}
  other: {image: debian-12, memory: 256M}
build: guest
modules:
  hello: {source: hello}
  bad: {source: bad}
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def lab(xdg: Path) -> Path:
    """A lab of two modules: hello passes, and bad oopses."""
    folder = xdg / "lab"
    for name, text in (("hello", ""), ("bad", "oops()")):
        (folder / name).mkdir(parents=True)
        (folder / name / f"{name}.c").write_text(text)
        (folder / name / "Makefile").write_text(f"obj-m := {name}.o\n")
    (folder / "lab.yaml").write_text(LAB)
    return folder


def kmlab(lab: Path, *words: str, **environment: str) -> Ended:
    done = subprocess.run(
        [sys.executable, "-m", "tests.watching", *words],
        cwd=lab,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if "--json" in words:
        documents.check(done.stdout)
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("command", [("run", "bad", "--all"), ("test", "--all")])
def test_run_and_test_write_every_format(lab: Path, command: tuple[str, ...]) -> None:
    words = [word for each in FORMATS for word in ("--report", f"out/runs{each.endings[0]}")]
    ended = kmlab(lab, *command, *words, "--junit", "out/junit")
    assert ended.code == 1, ended.err
    files = {path.name: path.read_text("utf-8") for path in (lab / "out").iterdir()}
    assert set(files) == {*(f"runs{each.endings[0]}" for each in FORMATS), "junit"}
    assert files["junit"] == files["runs.xml"]
    log = json.loads(files["runs.sarif"])
    SARIF.validate(log)
    (result,) = log["runs"][0]["results"]
    assert "debian (" in result["message"]["text"] and "other (" in result["message"]["text"]
    assert files["runs.html"].count('class="run bad"') == 2
    runs = [json.loads(line)["results"][0] for line in files["runs.jsonl"].splitlines()]
    key = lambda run: (run["module"], run["guest"])  # noqa: E731
    documents.check(files["runs.jsonl"])
    documents.check(files["runs.json"])
    assert sorted(runs, key=key) == sorted(json.loads(files["runs.json"])["results"], key=key)


def test_github_has_annotations_and_a_summary_that_cannot_be_written_costs_no_verdict(lab: Path) -> None:
    ended = kmlab(lab, "run", "bad", "--github", GITHUB_STEP_SUMMARY=str(lab / "summary"))
    assert [line for line in ended.out.splitlines() if line.startswith("::error ")]
    assert (lab / "summary").read_text("utf-8").startswith("### ✗ kmlab: 1 of 1 run not as expected\n")
    ended = kmlab(lab, "run", "hello", "--github", GITHUB_STEP_SUMMARY=str(lab))
    assert ended.code == 3 and "GITHUB_STEP_SUMMARY" in ended.err and "PASS  hello on debian" in ended.out


def test_compact_json_is_one_line_without_logs(lab: Path) -> None:
    for command in (("test", "hello"), ("build", "hello")):
        ended = kmlab(lab, *command, "--json", "--compact")
        assert ended.code == 0, ended.err
        (line,) = ended.out.splitlines()
        (result,) = json.loads(line)["results"]
        assert result["log"] == []
    (result,) = json.loads(kmlab(lab, "run", "hello", "--json").out)["results"]
    (short,) = json.loads(kmlab(lab, "run", "hello", "--json", "--compact").out)["results"]
    assert short["log_truncated"] == len(result["log"]) > 0
    assert short.keys() == result.keys()
    assert kmlab(lab, "run", "hello", "--compact").code == 2


def test_the_secure_boot_matrix_writes_no_report(lab: Path) -> None:
    ended = kmlab(lab, "test", "--secure-boot-matrix", "hello", "--report", "a.xml")
    assert ended.code == 2 and "writes no report" in ended.err and not (lab / "a.xml").exists()
