"""The picture of a run, drawn from its step times."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.common.events import Part
from kmlab.config.lab import Expect
from kmlab.report import timeline
from kmlab.run.context.results import StepResult
from kmlab.run.result import RunResult

SVG = "{http://www.w3.org/2000/svg}"


def result(*steps: StepResult, seconds: float = 2.0, outcome: str = "pass", module: str = "hello") -> RunResult:
    return RunResult(
        module=module,
        source="examples/hello",
        guest="debian",
        expect=Expect(),
        outcome=outcome,
        steps=steps,
        guest_parts=(Part("lock", 0.0, 0.0), Part("restore", 0.0, 0.3), Part("connect", 0.3, 0.1)),
        seconds=seconds,
    )


STEPS = (
    StepResult("build", "ok", 0.8, "hello.ko", 0.5),
    StepResult("sync", "ok", 0.1, "", 0.4),
    StepResult("load", "failed", 0.2, "hello", 1.3),
)


def test_steps_stand_in_the_order_in_which_they_began_with_what_is_around_them() -> None:
    found = timeline.bars(result(*STEPS))
    assert [(b.label, b.began, round(b.seconds, 3)) for b in found] == [
        ("guest: lock", 0.0, 0.0),
        ("guest: restore", 0.0, 0.3),
        ("guest: connect", 0.3, 0.1),
        ("sync", 0.4, 0.1),
        ("build", 0.5, 0.8),
        ("load", 1.3, 0.2),
        ("judge", 1.5, 0.5),
    ]


def test_a_build_that_went_on_while_the_guest_was_restored_stands_beside_that() -> None:
    steps = (StepResult("sync", "ok", 0.1, "", 0.6), StepResult("build", "ok", 0.9, "hello.ko", 0.1))
    found = timeline.bars(result(*steps, seconds=1.0))
    assert [(b.label, b.began, b.seconds) for b in found] == [
        ("guest: lock", 0.0, 0.0),
        ("guest: restore", 0.0, 0.3),
        ("build", 0.1, 0.9),
        ("guest: connect", 0.3, 0.1),
        ("sync", 0.6, 0.1),
    ]


def test_bars_are_as_long_as_their_steps_and_say_so() -> None:
    picture = ET.fromstring(timeline.svg([result(*STEPS)]))
    bars = [r for r in picture.findall(f"{SVG}rect") if r.get("x")]
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths[4] / widths[5] == pytest.approx(4.0, rel=0.01)  # the build and the load
    texts = [text.text for text in picture.findall(f"{SVG}text")]
    assert "0.80 s" in texts and "load  failed" in texts


def test_what_a_step_came_to_is_told_in_words_too() -> None:
    fine, failed = (timeline.svg([result(StepResult("load", outcome, 0.5, "", 1.0))]) for outcome in ("ok", "failed"))
    assert "failed" in failed and "failed" not in fine


def test_several_runs_are_drawn_to_one_scale() -> None:
    picture = ET.fromstring(timeline.svg([result(seconds=1.0), result(seconds=4.0, module="other")]))
    widths = [float(r.get("width", "")) for r in picture.findall(f"{SVG}rect") if r.get("x")]
    assert widths[-1] / widths[3] == pytest.approx(3.6 / 0.6, rel=0.01)  # what comes after the last part of each


def test_a_name_from_outside_cannot_leave_the_picture() -> None:
    drawn = timeline.svg([result(module="<script>alert(1)</script>\x1b[31m")])
    assert "<script>" not in drawn and "\x1b" not in drawn
    ET.fromstring(drawn)


def test_a_run_without_a_step_has_a_picture() -> None:
    assert ET.fromstring(timeline.svg([result(seconds=0.0, outcome="error")])).tag == f"{SVG}svg"


def test_the_name_of_the_file_says_whether_it_is_a_picture_or_a_page(tmp_path: Path) -> None:
    timeline.write(tmp_path / "a.svg", [result(*STEPS)])
    timeline.write(tmp_path / "a.html", [result(*STEPS)])
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    page = (tmp_path / "a.html").read_text()
    assert page.startswith("<!doctype html>") and (tmp_path / "a.svg").read_text() in page
    with pytest.raises(ConfigError, match=r"a\.png"):
        timeline.write(tmp_path / "a.png", [])
