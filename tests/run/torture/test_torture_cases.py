"""Each kind of torture has cases; their scripts are valid for the guest's shell and call the module's own functions."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
from pathlib import Path

import pytest

from kmlab.kernel.module.modinfo import ModInfo, Param, parse_modinfo
from kmlab.run.torture.fuzz import FuzzTarget
from kmlab.run.torture.groups import FAIL_NTH, GROUPS, OFFERS
from kmlab.run.torture.param_edges import edges
from kmlab.run.torture.torture_case import LOAD_REFUSED, Target, TortureCase, script
from kmlab.testing import module_image

DEVICE = FuzzTarget("/dev/top", rounds=2)
PARAMS = (Param("count", "int", ""), Param("who", "charp", ""), Param("sizes", "array of ushort", ""))


def info(name: str, *params: Param) -> ModInfo:
    return dataclasses.replace(parse_modinfo(module_image(name), f"{name}.ko"), params=params)


def target(folder: Path = Path("/tmp"), exercise: str | None = "cat '/dev/it''s'") -> Target:
    modules = (("base.ko", info("base")), ("sub/top it.ko", info("top", *PARAMS)))
    return Target(str(folder), modules, {"top": ["who=you and me"]}, exercise, frozenset(OFFERS), repeat=2, fuzz=DEVICE)


CASES = [case for group in GROUPS for case in itertools.islice(group.cases(target()), 60)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("exercise", ["cat /dev/x", None])
def test_the_script_of_each_case_is_valid_for_the_shell(case: TortureCase, exercise: str | None) -> None:
    text = script(target(exercise=exercise), case)
    assert subprocess.run(["dash", "-n"], input=text, text=True, check=False).returncode == 0, text


def test_names_of_cases_are_unique_and_each_has_a_sentence() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.group for case in CASES} == {group.name for group in GROUPS}
    assert all(case.what for case in CASES)


@pytest.mark.parametrize("name", ["cycle", "parallel-loads", "param-who-format"])
def test_a_script_loads_the_modules_in_order_with_their_parameters(name: str, tmp_path: Path) -> None:
    """insmod and rmmod are replaced; a case that goes well ends with 0."""
    calls = tmp_path / "calls"
    for program in ("insmod", "rmmod"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@" >> {calls}\n')
        (tmp_path / program).chmod(0o755)
    case = next(case for case in CASES if case.name == name)
    text = script(target(tmp_path, "true"), case)
    ended = subprocess.run(["dash"], input=text, text=True, check=False, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    lines = calls.read_text().splitlines()
    assert ended.returncode == 0
    assert lines[0] == "insmod ./base.ko"
    own = " who=%s%n%p" if name.startswith("param") else ""
    assert f"insmod ./sub/top it.ko who=you and me{own}" in lines


def test_a_module_that_does_not_load_again_ends_with_the_code_for_it(tmp_path: Path) -> None:
    (tmp_path / "insmod").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "insmod").chmod(0o755)
    text = script(target(tmp_path), next(case for case in CASES if case.name == "cycle"))
    ended = subprocess.run(["dash"], input=text, text=True, check=False, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert ended.returncode == LOAD_REFUSED


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        ("int", {"0", "-1", "2147483647", "-2147483648", "2147483648", ""}),
        ("ushort", {"0", "65535", "65536", "-1"}),
        ("bool", {"y", "n", "2", ""}),
        ("charp", {"", "x", "%s%n%p"}),
        ("array of int", {"", "1", ",,", "2147483647"}),
        ("my_own_type", {"", "x"}),
    ],
)
def test_each_type_of_parameter_is_tried_at_its_edges(type_: str, values: set[str]) -> None:
    found = list(edges(Param("p", type_, ""), 1))
    assert values <= {edge.value for edge in found}
    assert len({edge.name for edge in found}) == len(found)


def test_random_values_come_from_the_seed() -> None:
    one, again, other = ([edge.value for edge in edges(Param("p", "int", ""), seed)] for seed in (1, 1, 2))
    assert one == again != other


def test_a_group_that_the_kernel_does_not_allow_says_why() -> None:
    poor = dataclasses.replace(target(), offers=frozenset(), fuzz=None)
    left_out = {group.name: group.why_not(poor) for group in GROUPS}
    assert FAIL_NTH in (left_out["faults"] or "") and "kernel: debug" in (left_out["faults"] or "")
    assert "fuzz: {device: /dev/…}" in (left_out["fuzz"] or "")
    assert left_out["cycle"] is None
    assert all(group.why_not(target()) is None for group in GROUPS)
