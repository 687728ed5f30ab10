"""How several modules are loaded: one that is refused takes nothing with it but those that need it."""

from __future__ import annotations

import pytest

from kmlab.kernel.module.proc_modules import has_module_at
from kmlab.testing import Act, World, module_image
from tests.story import OOPS, Go

REFUSED = Act(code=1, error="insmod: ERROR: could not insert module: No such device\n")
IMAGES = {
    "first.ko": module_image("first"),
    "second.ko": module_image("second"),
    "third.ko": module_image("third"),
    "fourth.ko": module_image("fourth", depends="second"),
}


def test_a_refused_module_does_not_stop_those_that_do_not_need_it(go: Go, world: World) -> None:
    world.once["second"] = REFUSED
    result = go(images=IMAGES)
    assert result.outcome == "load-failed"
    assert [(s.name, s.outcome, s.detail) for s in result.steps if s.name in ("load", "unload")] == [
        ("load", "ok", "first"),
        ("load", "failed", "second"),
        ("load", "ok", "third"),
        ("load", "skipped", "fourth, needs second"),
        ("unload", "ok", "third"),
        ("unload", "ok", "first"),
    ]
    assert result.reason is not None and result.reason.endswith("; not tried: fourth, needs second")
    assert "returned -ENODEV" in result.reason


def test_nothing_is_loaded_after_a_crash_and_what_was_not_tried_is_said(go: Go, world: World) -> None:
    world.once["second"] = Act(code=137, kernel=OOPS, taint=1 << 7)
    result = go(images=IMAGES)
    assert result.outcome == "oops"
    assert [s.detail for s in result.steps if s.outcome == "skipped"] == ["third, after second", "fourth, after second"]
    assert "not tried: third, after second; fourth, after second" in (result.reason or "")


def test_many_that_were_not_tried_are_counted(go: Go, world: World) -> None:
    world.once["base"] = REFUSED
    users = {f"user{number}.ko": module_image(f"user{number}", depends="base") for number in range(8)}
    assert (go(images={"base.ko": module_image("base"), **users}).reason or "").endswith(", and 3 more")


def test_the_evidence_has_insmod_s_words_and_its_code(go: Go, world: World) -> None:
    world.once["second"] = REFUSED
    result = go(images=IMAGES)
    assert result.directory is not None
    said = (result.directory / "commands.log").read_text()
    assert "insmod ./second.ko" in said and "No such device\nexit code 1\n" in said
    assert "rmmod first\nexit code 0\n" in said


AREAS = """\
0xffffffffc0200000-0xffffffffc0204000   16384 move_module+0x2f/0x170 pages=3 vmalloc N0=3
0xffffffffc0300000-0xffffffffc0304000   16384 bpf_jit_alloc_exec+0xf/0x20 pages=3 vmalloc N0=3
"""


@pytest.mark.parametrize(
    ("address", "there"), [(0xFFFFFFFFC0200010, True), (0xFFFFFFFFC0204000, False), (0xFFFFFFFFC0300010, False)]
)
def test_memory_of_a_module_is_told_from_other_memory(address: int, there: bool) -> None:
    assert has_module_at(AREAS, address) is there
