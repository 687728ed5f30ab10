"""TAP, as Perl's own parser reads it: every TAP 14 document is one of TAP 13, which older releases of it know."""

from __future__ import annotations

import dataclasses
import subprocess
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from kmlab.report.formats import tap
from kmlab.run.result import RunResult
from tests.report.test_report import BAD, BROKEN, GOOD, HOSTILE
from tests.story import whole_result

READER = r"""
use TAP::Parser;
my $parser = TAP::Parser->new({source => $ARGV[0]});
while (my $it = $parser->next) { print $it->type, "\t", ($it->is_test ? $it->is_ok : ""), "\t", $it->raw, "\0"; }
print STDERR join("\n", $parser->parse_errors);
"""


class Line(NamedTuple):
    kind: str
    ok: bool
    raw: str


def parsed(folder: Path, *results: RunResult) -> list[Line]:
    said = tap.text(results)
    assert said.startswith("TAP version 14\n")
    (folder / "run.tap").write_text(said.replace("TAP version 14", "TAP version 13", 1), "utf-8")
    done = subprocess.run(
        ["perl", "-e", READER, str(folder / "run.tap")], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    fields = [line.split("\t", 2) for line in done.stdout.split("\0") if line]
    return [Line(kind, ok == "1", raw) for kind, ok, raw in fields]


def test_every_run_is_a_test_point_and_one_that_failed_has_its_verdict(tmp_path: Path) -> None:
    lines = parsed(tmp_path, GOOD, BAD, BROKEN)
    assert [(line.kind, line.ok) for line in lines if line.kind == "test"] == [
        ("test", True),
        ("test", False),
        ("test", False),
    ]
    assert [line.kind for line in lines] == ["version", "plan", "test", "test", "yaml", "test", "yaml"]
    first, second = (yaml.safe_load(textwrap.dedent(line.raw)) for line in lines if line.kind == "yaml")
    assert first == {
        "message": "oops: BUG: in null_read",
        "severity": "fail",
        "outcome": "oops",
        "expected": ["pass"],
        "seconds": 1.25,
        "reason": "a reason",
    }
    assert second["severity"] == "error"


def test_the_verdict_has_the_guilty_line_and_the_end_of_the_log(tmp_path: Path) -> None:
    (line,) = (
        each for each in parsed(tmp_path, dataclasses.replace(whole_result(), outcome="oops")) if each.kind == "yaml"
    )
    said = yaml.safe_load(textwrap.dedent(line.raw))
    assert said["at"] == {"file": "examples/oops/oops.c", "line": 27}
    assert said["log"] == ["[   30.100000] BUG"]


@pytest.mark.parametrize(
    "text", [HOSTILE, "a\nok 2 - forged", "... ---", "  ...", "x # SKIP", "\\# TODO", "\u2028", "- a: [", "😀"]
)
def test_nothing_that_a_guest_says_adds_a_line_or_a_directive(tmp_path: Path, text: str) -> None:
    result = dataclasses.replace(BAD, module=text, guest=text, title=text, reason=text, kernel=text)
    result = dataclasses.replace(result, log=(whole_result().log[0]._replace(text=text),))
    lines = parsed(tmp_path, result)
    assert [line.kind for line in lines] == ["version", "plan", "test", "yaml"]
    assert not lines[2].ok
    assert yaml.safe_load(textwrap.dedent(lines[3].raw))["outcome"] == "oops"


def test_no_runs_are_an_empty_plan() -> None:
    assert tap.text([]) == "TAP version 14\n1..0 # no runs\n"
