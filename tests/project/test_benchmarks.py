"""The frame of the benchmarks: figures beside their companions, round by round. What they measure is in benchmarks/."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import frame
from benchmarks.companions import Virtme
from benchmarks.figures import judge
from benchmarks.world import World

NOWHERE = World(Path("/nowhere"), {})


def figure(name: str, ours: frame.Measure, theirs: frame.Measure, **more: object) -> frame.Figure:
    return frame.Figure(
        name=name,
        what="a",
        companion="b",
        target=2,
        ours=ours,
        theirs=theirs,
        **more,  # type: ignore[arg-type]
    )


def test_every_figure_has_a_name_of_its_own_and_something_to_reach() -> None:
    found = frame.all_figures()
    assert len({f.name for f in found}) == len(found) > 5
    assert all(f.target > 0 and f.what and f.companion for f in found)


def test_figures_take_turns_and_what_two_of_them_need_is_measured_once_a_round() -> None:
    order: list[str] = []

    def one(_: World) -> float:
        order.append("one")
        return 2.0

    def two(_: World) -> float:
        order.append("two")
        return 4.0

    def both(_: World) -> float:
        order.append("both")
        return 8.0

    found = frame.measure([figure("x", one, both), figure("y", two, both)], NOWHERE, 2, lambda _: None)
    assert order == ["one", "both", "two"] * 2
    assert [m.value for m in found] == [0.25, 0.5]


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds() -> None:
    ours, theirs = iter([1.0, 9.0, 2.0]), iter([4.0, 3.0, 4.0])
    (found,) = frame.measure([figure("x", lambda _: next(ours), lambda _: next(theirs))], NOWHERE, 3, lambda _: None)
    told = found.to_json()
    assert told["value"] == 0.5
    assert told["spread"] == [0.25, 3.0]
    assert told["reached"] is True
    assert json.loads(json.dumps(frame.document([found], [(0, 0, 0), (1, 1, 1)], {"virtme-ng": "1.42"})))[
        "figures"
    ] == [told]


def test_a_figure_that_takes_long_may_have_fewer_rounds() -> None:
    (found,) = frame.measure([figure("x", lambda _: 1.0, lambda _: 1.0, rounds=1)], NOWHERE, 3, lambda _: None)
    assert found.ours == [1.0]


def test_a_difference_in_seconds_is_compared_with_its_target_too() -> None:
    slow = figure("x", lambda _: 5.0, lambda _: 1.5, kind="difference")
    (found,) = frame.measure([slow], NOWHERE, 1, lambda _: None)
    assert found.value == 3.5 and not found.reached
    assert any("3.50 s" in line and "NOT REACHED" in line for line in frame.table([found]))


def test_the_judge_s_figure_finds_the_crash_and_compares_with_a_small_log(tmp_path: Path) -> None:
    world = World(tmp_path, dict(os.environ))
    assert judge.hold_little(world) > 0
    assert judge.judge(world) > 0 and judge.match(world) > 0


@pytest.fixture
def companion(tmp_path: Path) -> Virtme:
    """A stand-in for virtme-ng that prints its command, as --verbose does, runs it, and always ends with 0.

    What is written to /dev/kmsg is left out: that would be this host's.
    """
    made = Virtme(tmp_path, "6.1.0-0-amd64")
    (made.venv / "bin").mkdir(parents=True)
    (made.venv / "lib/python3.11/site-packages/virtme_ng-1.42.dist-info").mkdir(parents=True)
    vng = made.venv / "bin/vng"
    vng.write_text('#!/bin/sh\nfor word; do last=$word; done\necho "$last"\nsh -c "${last% &&*}"\nexit 0\n')
    vng.chmod(0o755)
    return made


def test_a_command_of_virtme_ng_is_judged_by_a_mark_that_it_prints_itself(companion: Virtme) -> None:
    world = World(companion.venv.parent, dict(os.environ))
    assert companion.boot(world, "true") > 0
    with pytest.raises(RuntimeError, match=r"virtme-ng 1\.42 did not end well"):
        companion.boot(world, "echo begun; exit 3")
