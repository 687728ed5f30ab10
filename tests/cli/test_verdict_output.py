"""What a run prints for people: the verdict, its frames and the source last, and no sentence twice."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kmlab.cli.output import progress, render
from kmlab.config.lab import Expect
from kmlab.host.process.command import ProgramRun
from kmlab.kernel.crash.stack_trace import Section
from kmlab.kernel.log.records import Record
from kmlab.run.result import RunResult
from tests.places import REPOSITORY
from tests.story import OOPS, whole_result

TITLE = "BUG: kernel NULL pointer dereference in null_read"
SCREEN = 24
"""Lines of a classic terminal."""


def crashed(tmp_path: Path) -> RunResult:
    """A run that ended in an oops with a long report, twelve frames and a source file."""
    (tmp_path / "oops.c").write_text("".join(f"line {n};\n" for n in range(1, 60)))
    result = whole_result()
    frames = tuple(result.crashes[0].frames[0]._replace(function=f"function_{n}") for n in range(12))
    crash = dataclasses.replace(
        result.crashes[0], title=TITLE, frames=frames, text="\n".join(line[3:] for line in OOPS * 4)
    )
    return dataclasses.replace(
        result,
        outcome="oops",
        title=TITLE,
        crashes=(crash,),
        diagnostics=(),
        folder=tmp_path,
        directory=tmp_path / "runs" / "1",
        log=tuple(Record(1.0, "alert", line[3:], None, 0) for line in OOPS * 4),
    )


def printed(capsys: pytest.CaptureFixture[str], result: RunResult, *, verbose: bool = False) -> list[str]:
    render.verdict(result, verbose=verbose)
    return capsys.readouterr().out.splitlines()


def test_an_oops_fits_on_one_screen_with_the_verdict_last(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = printed(capsys, crashed(tmp_path))
    assert len(lines) <= SCREEN
    assert lines[0] == "  BUG: kernel NULL pointer dereference, address: 0000000000000000"
    assert lines[1] == f"  kernel log: {tmp_path}/runs/1/dmesg.txt (39 more lines of the crash log; -v shows them)"
    assert lines[2].startswith("  taint DIE, set by exercise: ")
    assert lines[3] == "    function_0 [oops] oops.c:27"
    assert lines[-5] == "    >   27  line 27;"
    assert lines[-2].startswith(f"OOPS  oops on debian: {TITLE} at oops.c:27 (NOT as expected: pass)")
    assert lines[-1] == f"  evidence: {tmp_path}/runs/1"


def test_verbose_prints_the_whole_report_and_then_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = crashed(tmp_path)
    brief, verbose = printed(capsys, result), printed(capsys, result, verbose=True)
    assert verbose[: len(OOPS)] == [f"  {line[3:]}" for line in OOPS]
    assert verbose[len(OOPS) * 4 + 1 :] == brief[2:]


def test_a_sentence_is_printed_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused = RunResult(
        module="m", source="m", guest="debian", outcome="load-failed", title="no room", reason="no room"
    )
    for result, words in (
        (crashed(tmp_path), TITLE),
        (refused, "no room"),
        (dataclasses.replace(refused, reason="no room; seen twice"), "no room"),
        (dataclasses.replace(refused, outcome="error", reason="no room (hint: make some)"), "no room"),
        (dataclasses.replace(refused, reason=None, title="expected: x", unmet=("expected: x",)), "expected: x"),
    ):
        assert "\n".join(printed(capsys, result)).count(words) == 1
    assert printed(capsys, dataclasses.replace(refused, reason="no room; seen twice"))[0] == "  seen twice"


def test_several_crashes_are_told_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = crashed(tmp_path)
    second = dataclasses.replace(result.crashes[0], kind="warning", title="WARNING in other", truncated=True)
    lines = printed(capsys, dataclasses.replace(result, crashes=(*result.crashes, second)))
    assert f"  oops: {TITLE} at oops.c:27" in lines
    assert "  warning: WARNING in other at oops.c:27 (its log is incomplete)" in lines


def test_a_run_that_passes_shows_what_the_kernel_printed(capsys: pytest.CaptureFixture[str]) -> None:
    result = dataclasses.replace(whole_result(), crashes=(), diagnostics=(), tainted_by={}, expect=Expect())
    assert printed(capsys, result) == ["  [   30.100000] BUG", "PASS  oops on debian  0.0 s"]


def test_a_program_is_shown_as_a_line_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    progress.show_program(ProgramRun("echo 'a\x1b b'", 0.25, 0, True))
    progress.show_program(ProgramRun("sleep 9", 3.0, None, False))
    drawn: list[str] = []
    with progress.lines_written_by(drawn.append):
        progress.show_program(ProgramRun("false", 0.0, 1, False))
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "$ echo 'a\\x1b b'  # exit code 0, 0.2 s",
        "$ sleep 9  # did not end in time, 3.0 s",
    ]
    assert shown.out == ""
    assert drawn == ["$ false  # exit code 1, 0.0 s"]


def test_verbose_shows_the_programs_of_a_run_on_stderr_and_leaves_the_json_clean(xdg: Path) -> None:
    folder = xdg / "lab"
    (folder / "hello").mkdir(parents=True)
    (folder / "hello" / "Kbuild").write_text("obj-m := hello.o\n")
    (folder / "hello" / "hello.c").write_text("/* well */\n")
    (folder / "lab.yaml").write_text("name: fake\nguests:\n  debian: {image: debian-12}\nbuild: guest\n")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    shown = []
    for words in (("--json",), ("--json", "--verbose", "--fresh")):
        argv = [sys.executable, "-m", "tests.watching", "run", "hello", *words]
        done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["results"][0]["outcome"] == "pass"
        shown.append([line for line in done.stderr.splitlines() if line.startswith("$ ")])
    assert shown[0] == [], "without --verbose only programs that fail are shown"
    assert any("qemu-img create " in line and line.endswith(" s") and "# exit code 0, " in line for line in shown[1])


def test_the_access_the_allocation_and_the_free_are_shown_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = crashed(tmp_path)
    frame = result.crashes[0].frames[0]
    allocated = Section("allocated", (frame._replace(function="take", line=9),), "cat", 512)
    freed = Section("freed", (frame._replace(function="drop", line=12),), None, 16)
    again = Section("last potentially related work creation", (frame._replace(line=12),))
    crash = dataclasses.replace(result.crashes[0], sections=(allocated, freed, again))
    lines = printed(capsys, dataclasses.replace(result, crashes=(crash,)))
    begin = lines.index("    >   27  line 27;")
    assert lines[begin + 3 : begin + 7] == [
        "    allocated by cat in take at oops.c:9",
        "    >    9  line 9;",
        "    freed by task 16 in drop at oops.c:12",
        "    >   12  line 12;",
    ]
    assert len(lines) <= SCREEN + 4


def test_a_note_stands_below_the_findings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = printed(capsys, dataclasses.replace(crashed(tmp_path), notes=("lockdep is off",)))
    assert lines[-3] == "  lockdep is off"
