"""Folders as their authors build them, in one command: what lies outside, make's ways, several modules, modprobe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.conftest import Answer, Lab
from tests.places import TEST_DATA

LAB = """\
name: folders
guests:
  debian: {image: debian-12, cpus: 2, memory: 1G}
modules:
  above: {source: above/probe, expect: {log: ["above_probe: 42 7 3"]}}
  serial_all: {source: serial_all, expect: {log: ["serial_all: asked"]}}
  with_program: {source: with_program, exercise: user/test}
  by_name:
    source: by_name
    load: modprobe
    exercise: modprobe --resolve-alias kmlab-by-name | grep by_name && grep crc7 /proc/modules
  one_refuses: {source: one_refuses, expect: {outcome: load-failed}}
  dkms_probe: {source: dkms_probe, expect: {log: ['/dkms_user: built for [67]\\./']}}
  dkms_old: {source: dkms_old}
  hides: {source: hides, exercise: echo 1 > /sys/module/hides/parameters/hide, expect: {outcome: unload-failed}}
"""
NAMES = ("above", "serial_all", "with_program", "by_name", "one_refuses", "dkms_probe", "dkms_old", "hides")
REASONS = {
    "dkms_old": "dkms.conf is for Linux 5.10 and older (BUILD_EXCLUSIVE_KERNEL_MAX)",
    "one_refuses": "returned -ENODEV",
    "hides": "hides is loaded but not in the kernel's list of modules, so rmmod cannot find it",
}


@pytest.fixture(scope="module")
def answer(base: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answer]:
    """All of the folders, run by one command."""
    lab = Lab(tmp_path_factory.mktemp("folders") / "lab.yaml", environment)
    lab.write(LAB)
    for name in NAMES:
        shutil.copytree(TEST_DATA / "modules" / name, lab.file.parent / name)
    yield lab("test", "--json", code=None, timeout=900)
    lab("destroy", code=None)


def result_of(answer: Answer, name: str) -> dict[str, Any]:
    (result,) = (result for result in answer.json["results"] if result["module"] == name)
    return dict(result)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_ends_as_its_author_sees_it(answer: Answer, name: str) -> None:
    result = result_of(answer, name)
    assert result["ok"], (result["outcome"], result["reason"], result["unmet"])
    assert REASONS.get(name, "") in (result["reason"] or "")


def test_what_is_sent_from_outside_is_said_in_one_line(answer: Answer) -> None:
    (line,) = (line for line in answer.err.splitlines() if "because the build needs" in line)
    assert "/above, because the build needs ../" in line


def test_those_that_do_not_need_the_refused_module_are_tried(answer: Answer) -> None:
    result = result_of(answer, "one_refuses")
    loads = {step["detail"]: step["outcome"] for step in result["steps"] if step["name"] == "load"}
    assert loads == {
        "first_ok": "ok",
        "second_refuses": "failed",
        "third_ok": "ok",
        "needs_second, needs second_refuses": "skipped",
    }
    said = (Path(result["artifacts"]["directory"]) / "commands.log").read_text()
    assert "insmod ./second_refuses.ko" in said and "No such device" in said and "exit code 1" in said


def test_a_dependency_that_modprobe_loaded_is_unloaded_again(answer: Answer) -> None:
    result = result_of(answer, "by_name")
    assert result["modules"]["before"] == result["modules"]["after"]
    assert any("crc7: loaded as dependencies" in step["detail"] for step in result["steps"])
