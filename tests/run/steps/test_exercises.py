"""Exercises with names, and files that a run brings from the guest: hostile names, links and sizes."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kmlab.common.errors import ConfigError
from kmlab.common.events import Event, Note
from kmlab.config.lab import Exercise, GuestSpec, Lab, Module, load_lab, plain_exercise
from kmlab.run import evidence, run
from kmlab.run.result import RunResult, document
from kmlab.run.steps.collect import parse_files, shell_pattern
from kmlab.testing import Act, FakeModule, World

Exercised = Callable[..., RunResult]
FILES = ((b"out/a.csv", b"1,2\n"), (b"/sys/kernel/debug/hello/stats", b"\0\xff"), (b"out/empty", b""))


@pytest.fixture
def exercised(lab: Lab, world: World, events: list[Event]) -> Exercised:
    """Run hello with these settings in lab.yaml."""

    def go(fake: FakeModule, options: run.Options | None = None, **settings: Any) -> RunResult:
        world.modules["hello"] = fake
        module = dataclasses.replace(lab.module_for(lab.folder / "hello"), **settings)
        return run.run(world.host, lab, lab.guest("debian"), module, options or run.Options(), events.append)

    return go


LIST = ("./check.sh", Exercise(name="stress", run="stress-ng --io 2", timeout=5.0), "echo\n done")


def test_each_exercise_of_a_list_has_a_name_a_result_and_a_time(exercised: Exercised) -> None:
    result = exercised(FakeModule(name="hello", exercise=Act(output="fine\n")), exercise=LIST)
    assert result.outcome == "pass"
    (answer,) = document([result])["results"]
    assert [(each["name"], each["outcome"], each["code"]) for each in answer["exercises"]] == [
        ("./check.sh", "ok", 0),
        ("stress", "ok", 0),
        ("echo done", "ok", 0),
    ]
    assert all(each["seconds"] >= 0 for each in answer["exercises"])
    log = (folder_of(result) / "exercise.log").read_text()
    assert log == "".join(f"==> {name} <==\nfine\n" for name in ("./check.sh", "stress", "echo done"))


def test_an_exercise_that_fails_does_not_keep_the_next_from_running(exercised: Exercised) -> None:
    fake = FakeModule(name="hello", exercises={"stress-ng --io 2": Act(code=3, output="no disk\n")})
    result = exercised(fake, exercise=LIST)
    assert result.outcome == "test-failed"
    assert result.reason == "the exercise `stress` ended with 3: no disk"
    (answer,) = document([result])["results"]
    assert [each["outcome"] for each in answer["exercises"]] == ["ok", "failed", "ok"]


def test_after_an_exercise_that_ends_the_guest_none_runs(exercised: Exercised) -> None:
    fake = FakeModule(name="hello", exercises={"./check.sh": Act(ends="lost")})
    result = exercised(fake, exercise=LIST)
    assert result.outcome == "lost"
    (answer,) = document([result])["results"]
    assert [(each["name"], each["code"]) for each in answer["exercises"]] == [("./check.sh", None)]


def test_the_option_replaces_the_whole_list(exercised: Exercised) -> None:
    result = exercised(FakeModule(name="hello"), run.Options(exercise="true"), exercise=LIST)
    assert [step.detail for step in result.steps if step.name == "exercise"] == ["true"]


def test_lab_yaml_takes_a_command_a_named_one_and_a_list(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(
        "name: t\nguests: {a: {image: debian-12}}\nmodules:\n"
        "  one: {source: ., exercise: ./a.sh}\n"
        "  named: {source: ., exercise: {name: n, run: ./b.sh, timeout: 2m}}\n"
        "  list: {source: ., exercise: [./a.sh, {name: n, run: ./b.sh}]}\n"
        "  none: {source: .}\n"
    )
    modules = load_lab(tmp_path / "lab.yaml").modules
    named = Exercise(name="n", run="./b.sh")
    assert modules["one"].exercises == (plain_exercise("./a.sh"),)
    assert modules["named"].exercises == (dataclasses.replace(named, timeout=120.0),)
    assert modules["list"].exercises == (plain_exercise("./a.sh"), named)
    assert modules["none"].exercises == ()


@pytest.mark.parametrize(
    ("exercise", "said"),
    [
        ("[a, a]", "lab.yaml:4: module 'm' has two exercises named 'a'"),
        ("[{name: x}]", "has no 'run'"),
        ("{run: x}", "has no 'name'"),
        ("[[a]]", "must be"),
    ],
)
def test_an_exercise_that_is_none_is_an_error_with_its_place(tmp_path: Path, exercise: str, said: str) -> None:
    (tmp_path / "lab.yaml").write_text(
        f"name: t\nguests: {{a: {{image: debian-12}}}}\nmodules:\n  m: {{source: ., exercise: {exercise}}}\n"
    )
    with pytest.raises(ConfigError) as error:
        load_lab(tmp_path / "lab.yaml")
    assert said in error.value.message and "lab.yaml:4" in error.value.message


def folder_of(result: RunResult) -> Path:
    assert result.directory is not None
    return result.directory


# --- collect -------------------------------------------------------------------------------------------------------


def test_files_of_the_guest_are_in_the_folder_of_the_run(exercised: Exercised) -> None:
    result = exercised(FakeModule(name="hello", files=FILES), collect=("out/*", "/sys/kernel/debug/hello/stats"))
    assert result.outcome == "pass"
    names = {path.name: path.read_bytes() for path in (folder_of(result) / "collected").iterdir()}
    assert names == {"out_a.csv": b"1,2\n", "sys_kernel_debug_hello_stats": b"\0\xff", "out_empty": b""}
    (answer,) = document([result])["results"]
    assert answer["collected"][0] == {"path": "out/a.csv", "file": "collected/out_a.csv", "bytes": 4}
    assert [step.name for step in result.steps] == ["sync", "build", "load", "collect", "unload"]


def test_files_are_collected_after_an_exercise_that_failed(exercised: Exercised) -> None:
    fake = FakeModule(name="hello", files=FILES, exercise=Act(code=1))
    result = exercised(fake, exercise="false", collect=("out/*",))
    assert result.outcome == "test-failed" and len(result.collected) == 3


def test_files_beyond_the_limit_are_missing_and_that_is_said(exercised: Exercised, events: list[Event]) -> None:
    fake = FakeModule(name="hello", files=((b"small", b"x" * 1000), (b"large", b"x" * 3000), (b"last", b"x")))
    result = exercised(fake, collect=("*",), collect_max=2000)
    assert [file.path for file in result.collected] == ["small"]
    assert any(isinstance(event, Note) and "collect_max" in event.text for event in events)


HOSTILE = (
    b"../../../../etc/passwd",
    b"/etc/../../x",
    b"..",
    b".bashrc",
    b"-rf",
    b"a/../b",
    b"a\nb\x1b[2J",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe".encode(),
    b"\xff\xfe",
    b"x" * 3000,
    b"",
    b"/",
    b"con",
    b"a/b",
    b"a_b",
)


def test_hostile_names_stay_in_the_folder_and_replace_nothing(tmp_path: Path) -> None:
    answer = b"".join(name + b"\0" + b"eA==\0" for name in HOSTILE)
    files, dropped = parse_files(answer, 1000)
    assert not dropped and len(files) == len(HOSTILE)
    (tmp_path / "console.log").write_text("mine")
    written = evidence.write_collected(tmp_path, files)
    places = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert places == sorted(["console.log", *(f"collected/{each.name}" for each in written)])
    assert len({each.name for each in written}) == len(HOSTILE)
    for each in written:
        assert each.path.isprintable() and each.name.isascii() and not each.name.startswith((".", "-"))
        assert "/" not in each.name and len(each.name) <= 160
    assert (tmp_path / "console.log").read_text() == "mine"


@pytest.mark.parametrize("answer", [b"", b"a", b"a\0", b"a\0!!\0", b"a\0eA==", b"a\0eA==\0b\0", b"\0" * 9])
def test_an_answer_that_is_cut_off_or_damaged_never_raises(answer: bytes) -> None:
    files, _ = parse_files(answer, 10)
    assert all(len(file.content) <= 1 for file in files)


def test_a_guest_that_sends_more_than_it_was_asked_for_is_cut(tmp_path: Path) -> None:
    answer = b"".join(b"%d\0\0" % number for number in range(1000))
    files, dropped = parse_files(answer, 10)
    assert (len(files), dropped) == (200, True)


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [("out/*.csv", ["out/a.csv"]), ("$(touch pwned)*", []), ("a b;*", ["a b;c"]), ("[ab]?", ["ax"]), ("'*", ["'q"])],
)
def test_a_pattern_means_only_what_a_pattern_means(tmp_path: Path, pattern: str, matching: list[str]) -> None:
    (tmp_path / "out").mkdir()
    for name in ("out/a.csv", "out/b.txt", "a b;c", "ax", "'q"):
        (tmp_path / name).touch()
    line = f'for f in {shell_pattern(pattern)}; do [ -f "$f" ] && printf "%s\\n" "$f"; done; :'
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == matching
    assert not (tmp_path / "pwned").exists()


# --- forward -------------------------------------------------------------------------------------------------------


def guest_of(folder: Path, text: str) -> GuestSpec:
    (folder / "lab.yaml").write_text(f"name: t\nguests:\n  a: {{image: debian-12, {text}}}\n")
    return load_lab(folder / "lab.yaml").guests["a"]


def test_a_port_is_a_pair_or_the_guest_s_alone(tmp_path: Path) -> None:
    assert guest_of(tmp_path, 'forward: ["8080:80", 443]').forward == ((8080, 80), (0, 443))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("forward: ['8080:80:1']", "must be a port of the guest, or HOST:GUEST"),
        ("forward: ['70000']", "must be a port"),
        ("forward: ['0:80']", "must be a port"),
        ("forward: ['0.0.0.0:80']", "must be a port"),
        ("forward: ['80:80', '80:81']", "forwards one port of the host twice"),
        ("forward: ['80'], network: none", "has 'forward' and no network"),
    ],
)
def test_a_port_that_is_none_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        guest_of(tmp_path, text)


def test_a_module_of_a_type_is_a_value() -> None:
    assert Module(name="m", source=Path("m"), exercise="x").exercises[0].name == "x"
