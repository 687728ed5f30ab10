"""What a run is asked for, told with fake doors: folders, parameters, expectations, and what is wrong with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.common.events import Event
from kmlab.config.lab import Expect, Lab, load_lab
from kmlab.provision import lifecycle
from kmlab.run import run
from kmlab.run.result import to_json
from kmlab.run.selection import modules_under
from kmlab.testing import World, module_image
from tests.story import LAB, Go


def test_a_folder_that_nothing_can_be_made_of_is_said_before_a_guest_is_started(go: Go, lab: Lab, world: World) -> None:
    (lab.folder / "hello" / "Kbuild").write_text("# nothing to build\n")
    with pytest.raises(ConfigError, match="no Kbuild file, and no Makefile with obj-m"):
        go()
    with pytest.raises(ConfigError, match="absent: no such folder"):
        go("absent")
    assert world.asked == []
    assert not lifecycle.lab_files(lab).runs.exists()


def test_all_modules_of_a_test_are_looked_at_before_the_first_one_runs(lab: Lab) -> None:
    assert [module.name for module in modules_under(lab, [])] == ["params"]
    assert [module.name for module in modules_under(lab, [lab.folder / "hello"])] == ["hello"]
    with pytest.raises(ConfigError, match="absent: no such folder"):
        modules_under(lab, [lab.folder / "hello", lab.folder / "absent"])
    (lab.folder / "params" / "Kbuild").unlink()
    with pytest.raises(ConfigError, match=r"lab\.yaml:8: .*params: no Kbuild file"):
        modules_under(lab, [])
    with pytest.raises(ConfigError, match="no modules"):
        modules_under(dataclasses.replace(lab, modules={}), [])


def test_what_is_no_folder_is_said_before_a_guest_is_started(lab: Lab, world: World, events: list[Event]) -> None:
    wanted = lab.module_for(lab.folder / "hello" / "hello.c")
    with pytest.raises(ConfigError) as raised:
        run.run(world.host, lab, lab.guest("debian"), wanted, run.Options(), events.append)
    assert raised.value.hint == f"give its folder: {lab.folder / 'hello'}"
    assert world.asked == []


def test_folders_of_one_name_are_modules_of_two_names(xdg: Path) -> None:
    course = xdg / "course"
    for place in ("week1/hello", "week2/hello", "week2/other/src", ".git/hello"):
        (course / place).mkdir(parents=True)
        (course / place / "Makefile").write_text("obj-m := a.o\n")
    (course / "Makefile").write_text("all:\n\tfor d in week*; do make -C $$d; done\n")
    (course / "week2/other/Makefile").write_text("all:\n\tmake -C /lib/modules/x/build M=$(PWD)/src\n")
    (course / "lab.yaml").write_text("name: course\nguests:\n  debian: {image: debian-12}\n")
    found = modules_under(load_lab(course / "lab.yaml"), [course])
    told = [(module.name, str(module.source.relative_to(course))) for module in found]
    assert told == [("hello", "week1/hello"), ("week2-hello", "week2/hello"), ("src", "week2/other/src")]
    assert modules_under(load_lab(course / "lab.yaml"), [course, course / "week1"]) == found


def test_a_kind_that_no_finding_has_is_bad_input(lab: Lab, world: World, go: Go) -> None:
    file = lab.folder / "lab.yaml"
    file.write_text(LAB.replace("outcome: pass, log:", "outcome: oops, kind: null-derefrence, log:"))
    with pytest.raises(ConfigError) as raised:
        modules_under(load_lab(file), [])
    assert raised.value.message.endswith("lab.yaml:8: module 'params': unknown value 'null-derefrence' for expect.kind")
    assert "null-dereference" in (raised.value.hint or "")


def test_the_folder_that_has_the_makefile_is_named(go: Go, lab: Lab) -> None:
    hello = lab.folder / "hello"
    (hello / "src").mkdir()
    (hello / "Kbuild").rename(hello / "src" / "Makefile")
    with pytest.raises(ConfigError) as raised:
        go()
    assert raised.value.hint == f"give the folder that has one: {hello / 'src'}"


def test_parameters_of_the_lab_and_of_the_command_line_reach_insmod(go: Go, world: World) -> None:
    image = module_image("params", parmtype="count:int")
    go("params", images={"params.ko": image}, options=run.Options(params={"count": 5}))
    assert any("insmod ./params.ko count=5" in line for line in world.lines)


def test_what_is_expected_on_this_kernel_is_what_counts(go: Go, lab: Lab) -> None:
    since = {(6, 0): Expect(outcome=("oops",), log=("wanted",)), (6, 4): Expect()}
    module = dataclasses.replace(lab.modules["params"], expect=Expect(outcome=("panic",), since=since))
    there = dataclasses.replace(lab, modules={"params": module})
    result = go("params", lab=there)
    assert (result.expect, result.ok) == (since[6, 0], False)
    assert "expected in the log: wanted" in result.unmet
    assert to_json(result)["expected"] == "oops"
