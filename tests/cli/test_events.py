"""Test stages, deadlines and text that is safe to print."""

from __future__ import annotations

import time

import pytest

from kmlab.cli.output import render
from kmlab.common.errors import LabError
from kmlab.common.events import Deadline, Event, Finished, Progress, Stage, Started, printable


def test_a_stage_reports_its_start_and_its_success() -> None:
    heard: list[Event] = []
    with Stage(heard.append, "debian", "baking the base") as stage:
        stage.progress(1, 2, "MiB", detail="half")
        stage.detail = "kernel 6.1"
    assert heard[:2] == [
        Started("debian", "baking the base"),
        Progress("debian", "baking the base", 1, 2, "MiB", "half"),
    ]
    ended = heard[2]
    assert isinstance(ended, Finished)
    assert (ended.subject, ended.what, ended.detail) == ("debian", "baking the base", "kernel 6.1")
    assert ended.seconds >= 0


def test_a_stage_reports_its_outcome() -> None:
    heard: list[Event] = []
    with Stage(heard.append, "debian", "load hello") as stage:
        stage.outcome = "failed"
    assert [e.outcome for e in heard if isinstance(e, Finished)] == ["failed"]


def test_a_failed_step_is_not_shown_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    with render.reporting() as report:
        report(Finished("debian", "build hello", 1.0, "hello.ko"))
        report(Finished("debian", "load hello", 0.3, "hello", "failed"))
    shown = capsys.readouterr().err.splitlines()
    assert [line[: line.index("debian")] for line in shown] == ["  ok  ", " fail "]


def test_a_stage_that_raised_is_reported_as_failed() -> None:
    heard: list[Event] = []
    with pytest.raises(ValueError, match="no"), Stage(heard.append, "debian", "booting"):
        raise ValueError("no")
    assert heard == [Started("debian", "booting")]
    with pytest.raises(LabError, match="no"), Stage(heard.append, "debian", "booting"):
        raise LabError("no")
    assert isinstance(heard[-1], Finished) and heard[-1].outcome == "failed"


def test_a_deadline_passes_and_is_never_negative() -> None:
    deadline = Deadline(0.01)
    assert 0 < deadline.left <= 0.01
    time.sleep(0.02)
    assert deadline.passed
    assert deadline.left == 0


def test_a_part_never_outlasts_the_whole() -> None:
    assert Deadline(1).within(100).seconds <= 1
    assert Deadline(100).within(1).seconds == 1


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain, tab\tand Grüße", "plain, tab\tand Grüße"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("line\nbreak\r", "line\\x0abreak\\x0d"),
        ("\x9b2J", "\\x9b2J"),
        ("right\u202eto left", "right\\u202eto left"),
        ("\U000e0041", "\\U000e0041"),
        ("\udcff", "\\xff"),
    ],
)
def test_a_guest_s_text_cannot_control_a_terminal(said: str, shown: str) -> None:
    assert printable(said) == shown


def test_a_limit_caps_what_is_shown() -> None:
    assert printable("abcdef", 4) == "abc…"
    assert printable("abcd", 4) == "abcd"
