"""What a run leaves on the host, told with fake doors: its folder, its JSON, the guest's memory."""

from __future__ import annotations

import dataclasses
import json
from typing import Literal

import pytest

from kmlab.common.errors import HypervisorError
from kmlab.common.events import Event
from kmlab.config.lab import Lab
from kmlab.provision import lifecycle
from kmlab.run.result import to_json
from kmlab.testing import TEXT, Act, World
from tests.story import OOPS, PANIC, Go, notes


def test_where_its_sections_are_in_memory_is_kept_with_the_run(go: Go) -> None:
    result = go()
    assert result.directory is not None
    assert (result.directory / "sections.txt").read_text() == f"hello .text {TEXT:#x}\n"


def test_result_json_says_what_the_command_says(go: Go) -> None:
    result = go()
    assert result.directory is not None
    written = json.loads((result.directory / "result.json").read_text())
    assert written == {"schema": "kmlab.run/1", "results": [to_json(result)]}
    for name in ("console", "kernel_log", "build_log"):
        assert (result.directory / written["results"][0]["artifacts"][name]).exists()


def test_the_oldest_runs_are_removed(go: Go, lab: Lab) -> None:
    runs = lifecycle.lab_files(lab).runs
    for year in range(2001, 2006):
        (runs / f"{year}0101-000000-abcd-hello-debian").mkdir(parents=True)
    newest = go().directory
    left = sorted(path.name[:4] for path in runs.iterdir() if path != newest)
    assert left == ["2004", "2005"]


def test_each_new_flag_of_the_taint_is_put_down_to_the_step_that_set_it(go: Go, lab: Lab) -> None:
    result = go("params", load=Act(taint=1 << 12, kernel=("params: count is 3",)), exercise=Act(taint=1 << 9))
    told = to_json(result)
    assert told["taint_set_by"] == {"WARN": "exercise", "OOT_MODULE": "load"}
    assert told["modules"] == {"before": [], "after": []}


def test_the_taint_of_a_guest_that_died_is_what_its_last_words_said(go: Go) -> None:
    result = go(load=Act(kernel=(*OOPS, "<0>Kernel panic - not syncing: Fatal exception", PANIC[1]), ends="hangs"))
    told = to_json(result)
    assert told["taint_set_by"] == {"OOT_MODULE": "load", "UNSIGNED_MODULE": "load"}
    assert told["modules"]["after"] is None


@pytest.mark.parametrize(
    ("setting", "act", "kept"),
    [
        ("auto", Act(kernel=PANIC, ends="hangs"), True),
        ("auto", Act(), False),
        ("auto", Act(code=137, kernel=OOPS), False),
        ("auto", Act(ends="lost"), False),
        ("always", Act(), True),
        ("never", Act(kernel=PANIC, ends="hangs"), False),
    ],
)
def test_memory_is_kept_as_lab_yaml_says(
    go: Go, lab: Lab, world: World, setting: Literal["auto", "always", "never"], act: Act, kept: bool
) -> None:
    result = go(load=act, lab=dataclasses.replace(lab, vmcore=setting))
    assert result.directory is not None
    assert ("dump" in world.asked, result.vmcore == "vmcore", (result.directory / "vmcore").exists()) == (kept,) * 3
    assert not list(lifecycle.lab_files(lab).guest("debian").root.glob("memory*"))


def test_a_dump_beyond_the_cap_is_told_and_not_kept(go: Go, lab: Lab, events: list[Event]) -> None:
    result = go(lab=dataclasses.replace(lab, vmcore="always", vmcore_max=8000))
    assert (result.outcome, result.vmcore) == ("pass", None)
    assert result.directory is not None
    assert not (result.directory / "vmcore").exists()
    assert notes(events) == ["its memory was not kept: the dump is beyond vmcore_max, 0 MiB"]


def test_a_dump_that_fails_is_no_verdict_on_the_module(go: Go, world: World, events: list[Event]) -> None:
    world.refusals["dump"] = HypervisorError("libvirt could not dump the guest's memory: no")
    assert go(load=Act(kernel=PANIC, ends="hangs")).outcome == "panic"
    assert notes(events) == ["its memory was not kept: libvirt could not dump the guest's memory: no"]


def test_what_make_printed_is_kept_without_escapes(go: Go) -> None:
    result = go(build=Act(code=2, error="\x1b]0;owned\x07\x1b[2Jhello.c:1:1: error: no\u202e\n"))
    assert result.outcome == "build-failed" and result.directory is not None
    log = (result.directory / "build.log").read_text()
    assert "error: no" in log
    assert "\x1b" not in log and "\x07" not in log and "\u202e" not in log
