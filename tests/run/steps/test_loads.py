"""How several modules are loaded: one that is refused takes nothing with it but those that need it."""

from __future__ import annotations

import pytest

from kmlab.config.lab import Lab, load_lab
from kmlab.kernel.module.proc_modules import has_module_at
from kmlab.testing import Act, World, module_image
from tests.story import LAB, OOPS, Go, record_of

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


MODPROBE = LAB.replace("modules:\n", "modules:\n  hello: {source: hello, load: modprobe, params: {speed: 3}}\n")


def test_modprobe_loads_by_name_out_of_a_depmod_tree_that_is_taken_away_again(lab: Lab, go: Go, world: World) -> None:
    lab.path.write_text(MODPROBE)
    image = module_image("hello", parmtype="speed:int")
    result = go(lab=load_lab(lab.path), images={"sub/hello.ko": image})
    assert result.outcome == "pass", result.reason
    (loads,) = (line for line in world.lines if "modprobe hello" in line)
    assert "modprobe hello speed=3" in loads and not any("insmod" in line for line in world.lines)
    install = next(n for n, line in enumerate(world.lines) if "depmod" in line)
    assert "cp ./sub/hello.ko" in world.lines[install]
    assert any("rm -rf" in line and "updates/kmlab/hello" in line for line in world.lines[install + 1 :])


@pytest.mark.parametrize("stays", [False, True])
def test_the_kernel_s_own_modules_that_came_along_are_unloaded_or_the_guest_is_dirty(
    lab: Lab, go: Go, world: World, stays: bool
) -> None:
    world.brings["hello"] = ("libcrc32c", "udp_tunnel")
    world.stays = {"udp_tunnel"} if stays else set()
    result = go()
    assert result.outcome == "pass"
    assert any(s.name == "unload" and s.detail.startswith("libcrc32c, udp_tunnel: ") for s in result.steps)
    assert any("rmmod libcrc32c; rmmod udp_tunnel" in line for line in world.lines)
    record = record_of(lab)
    assert (record.state, record.reason) == (("dirty", "udp_tunnel stayed loaded") if stays else ("clean", ""))
