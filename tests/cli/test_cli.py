"""The program as a person or a script calls it: exit codes, one JSON document, one clear line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kmlab.config.lab import load_lab
from tests.pages import commands
from tests.places import TEST_DATA
from tests.program import Program

OOPS = TEST_DATA / "oops"
LAB = "name: t\nguests:\n  debian: {image: debian-12}\n"


@pytest.fixture
def lab(xdg: Path) -> Path:
    """The folder in which commands run."""
    folder = xdg / "lab"
    folder.mkdir()
    return folder


@pytest.fixture
def kmlab(lab: Path) -> Program:
    return Program(lab)


COMMANDS = (
    *("init", "doctor", "up", "run", "test", "build", "load", "unload", "log", "crashes"),
    *("status", "ssh", "console", "reset", "down", "destroy", "image"),
)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command(kmlab: Program, flag: str) -> None:
    ended = kmlab(flag)
    assert ended.code == 0
    listed = {line.split()[0] for line in ended.out.splitlines() if line.startswith("  ") and line.strip()}
    assert set(COMMANDS) <= listed


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_help_names_values_as_a_person_types_them(kmlab: Program, name: str) -> None:
    said = kmlab(*name.split(), "-h", COLUMNS="120").out
    assert re.findall(r"<\w+|list\[|\{\w+\}|\]\.\.\.", said) == []
    usage, table = said.splitlines()[0], said.partition("Arguments:\n")[2].partition("\n\n")[0]
    for row in filter(None, table.splitlines()):
        assert row.split("  ")[1] in usage


def test_help_says_what_may_be_several_and_what_must_be_given(kmlab: Program) -> None:
    assert "test [OPTIONS] [DIR...]" in kmlab("test", "-h").out
    assert "\n  DIR...  " in kmlab("test", "-h").out
    assert kmlab("run", "-h").out.splitlines()[0].endswith("run [OPTIONS] DIR")


def test_the_list_of_commands_has_a_whole_sentence_for_each(kmlab: Program) -> None:
    for words in ((), ("image",)):
        _, listed = kmlab(*words, "-h", COLUMNS="80").out.split("Commands:\n")
        assert not [line for line in listed.splitlines() if line.endswith("...")]


@pytest.mark.parametrize("command", [*((name,) for name in COMMANDS), ("image", "list"), ("image", "verify")])
def test_each_command_explains_itself(kmlab: Program, command: tuple[str, ...]) -> None:
    ended = kmlab(*command, "-h")
    assert ended.code == 0
    assert ended.out.startswith("Usage: ")


HEAVY = (
    "libvirt",
    "paramiko",
    "rich",
    "cryptography",
    "yaml",
    "elftools",
    "pycdlib",
    "urllib3",
    "ssl",
    "kmlab.provision.lifecycle",
    "kmlab.report",
    "kmlab.report.json_schema",
    "kmlab.run.documents",
)


def heavy_after(program: str, environment: dict[str, str]) -> str:
    """Which heavy libraries a program of kmlab's has loaded at its end."""
    lines = (
        "import sys",
        f"try: {program}",
        "except SystemExit: pass",
        f"print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)",
    )
    argv = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=True, timeout=60, env={**os.environ, **environment}
    )
    return done.stdout + done.stderr.strip().splitlines()[-1]


def test_help_loads_no_library_that_it_does_not_need() -> None:
    said = heavy_after("from kmlab.cli.app import app; app(['--help'])", {})
    assert "Usage: " in said and said.endswith("[]")


def test_completion_loads_no_library_that_it_does_not_need() -> None:
    asked = {"_KMLAB_COMPLETE": "complete_bash", "COMP_WORDS": "kmlab r", "COMP_CWORD": "1"}
    said = heavy_after("from kmlab.cli.app import app; app(prog_name='kmlab')", asked)
    assert "run" in said.split() and said.endswith("[]")


def test_the_version_is_said(kmlab: Program) -> None:
    ended = kmlab("--version")
    assert (ended.code, ended.out.split()[0]) == (0, "kmlab")


def test_an_unknown_command_or_option_is_a_usage_error(kmlab: Program) -> None:
    assert kmlab("upp").code == 2
    assert kmlab("status", "--nonsense").code == 2
    assert kmlab("run").code == 2


@pytest.mark.parametrize("words", [("status",), ("up",), ("run", "."), ("log",), ("destroy",), ("test",)])
def test_without_a_lab_the_hint_is_init(kmlab: Program, words: tuple[str, ...]) -> None:
    ended = kmlab(*words)
    assert ended.code == 2
    assert ended.err.startswith("kmlab: no lab.yaml in ")
    assert "hint: kmlab init" in ended.err
    assert ended.out == ""


def test_a_lab_file_that_is_not_there_is_said(kmlab: Program) -> None:
    ended = kmlab("status", "--lab", "absent.yaml")
    assert (ended.code, ended.err) == (2, "kmlab: absent.yaml: No such file or directory\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAB + "gests: {}\n", "lab.yaml:4: "),
        (LAB + "accel: [kvm]\n", "lab.yaml:4: "),
        ("name: t\n\tguests: {}\n", "lab.yaml:2: "),
        ("name: t\nguests:\n  a: {image: debian-12}\n  a: {image: debian-12}\n", "lab.yaml:4: "),
    ],
)
def test_a_lab_yaml_that_is_wrong_is_one_line_with_its_place(kmlab: Program, lab: Path, text: str, words: str) -> None:
    (lab / "lab.yaml").write_text(text)
    ended = kmlab("status")
    assert ended.code == 2
    first, *hints = ended.err.splitlines()
    assert first.startswith(f"kmlab: {words}")
    assert all(line.startswith("  hint: ") for line in hints)
    assert len(hints) <= 1


def test_an_unknown_guest_is_said_with_the_nearest(kmlab: Program, lab: Path) -> None:
    (lab / "lab.yaml").write_text(LAB)
    for command in ("status", "up", "down", "log", "destroy", "reset"):
        ended = kmlab(command, "debain")
        assert ended.code == 2, command
        assert ended.err.startswith("kmlab: there is no guest 'debain' in lab.yaml"), command
        assert "debian" in ended.err


def test_an_unknown_image_is_said_with_file_and_line(kmlab: Program, lab: Path) -> None:
    (lab / "lab.yaml").write_text("name: t\nguests:\n  g:\n    image: debain-12\n")
    ended = kmlab("up")
    assert ended.code == 2
    assert ended.err.startswith("kmlab: lab.yaml:4: unknown image 'debain-12'\n")
    assert "debian-12" in ended.err


def test_debug_shows_where_an_error_came_from(kmlab: Program) -> None:
    ended = kmlab("status", "--debug")
    assert "Traceback" in ended.err
    assert "ConfigError" in ended.err


@pytest.mark.parametrize("words", [("status",), ("up",), ("run", "."), ("test",), ("log",), ("image", "build", "nix")])
def test_an_error_is_one_json_document_too(kmlab: Program, words: tuple[str, ...]) -> None:
    ended = kmlab(*words, "--json")
    said = json.loads(ended.out)
    assert ended.code == 2
    assert said["schema"] == "kmlab.error/1"
    assert said["error"]["message"] in ended.err
    assert said["error"]["hint"]


def test_init_writes_a_lab_that_loads_and_never_overwrites(kmlab: Program, lab: Path) -> None:
    ended = kmlab("init")
    assert ended.code == 0
    assert {p.relative_to(lab).as_posix() for p in lab.rglob("*") if p.is_file()} == {
        "lab.yaml",
        ".lab.schema.json",
        "hello/hello.c",
        "hello/Makefile",
    }
    assert kmlab("status").code == 0
    (lab / "lab.yaml").write_text(LAB)
    again = kmlab("init")
    assert again.code == 2
    assert "already exists" in again.err
    assert (lab / "lab.yaml").read_text() == LAB


def test_init_into_a_new_folder_says_what_it_wrote(kmlab: Program, lab: Path) -> None:
    ended = kmlab("init", "new", "--json")
    assert json.loads(ended.out) == {
        "schema": "kmlab.init/1",
        "written": [".lab.schema.json", "hello/Makefile", "hello/hello.c", "lab.yaml"],
    }
    assert (lab / "new" / "lab.yaml").exists()


@pytest.mark.parametrize(
    ("image", "default", "second", "first_use"),
    [
        ("debian-12", "debian", {"noble": "ubuntu-24.04"}, "builds the image debian-12"),
        ("ubuntu-24.04", "noble", {"debian": "debian-12"}, "downloads the image ubuntu-24.04"),
        ("debian-13-cloud", "debian-13-cloud", {"noble": "ubuntu-24.04"}, "downloads the image debian-13-cloud"),
    ],
)
def test_init_with_an_image_has_it_in_the_default_guest_and_another_distribution_beside_it(
    kmlab: Program, lab: Path, image: str, default: str, second: dict[str, str], first_use: str
) -> None:
    ended = kmlab("init", "--image", image)
    assert ended.code == 0 and first_use in ended.out
    loaded = load_lab(lab / "lab.yaml")
    assert loaded.default == (default,)
    assert {name: spec.image for name, spec in loaded.guests.items()} == {default: image, **second}
    text = (lab / "lab.yaml").read_text()
    assert text.count("at first use: ") == 2 and "@" not in text


def test_init_writes_a_file_for_agents_also_beside_a_lab(kmlab: Program, lab: Path) -> None:
    place = lab.parent / "course"
    place.mkdir()
    written = json.loads(kmlab("init", "--agents", "--json", at=place).out)["written"]
    assert written == [".lab.schema.json", "AGENTS.md", "hello/Makefile", "hello/hello.c", "lab.yaml"]
    assert "kmlab run hello --json --compact" in (place / "AGENTS.md").read_text()
    again = kmlab("init", "--agents", at=place)
    assert (again.code, again.out) == (2, "")
    (place / "AGENTS.md").unlink()
    assert json.loads(kmlab("init", "--agents", "--json", at=place).out)["written"] == ["AGENTS.md"]


def test_init_with_an_unknown_image_writes_nothing(kmlab: Program, lab: Path) -> None:
    ended = kmlab("init", "--image", "ubuntu-24.4")
    assert ended.code == 2 and "unknown image 'ubuntu-24.4'" in ended.err and "ubuntu-24.04" in ended.err
    assert list(lab.iterdir()) == []


def test_status_of_a_lab_that_never_ran(kmlab: Program, lab: Path) -> None:
    (lab / "lab.yaml").write_text(LAB)
    said = json.loads(kmlab("status", "--json").out)
    assert said == {
        "schema": "kmlab.status/1",
        "lab": "t",
        "accel": None,
        "guests": [{"name": "debian", "state": "stopped", "in_use": False}],
    }
    assert "debian: stopped" in kmlab("status").out


def test_the_lab_is_found_from_a_folder_below(kmlab: Program, lab: Path) -> None:
    (lab / "lab.yaml").write_text(LAB)
    (lab / "deep" / "er").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "kmlab", "status"],
        cwd=lab / "deep" / "er",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "lab t" in done.stdout


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["no-such-command"], 2)])
def test_a_process_of_its_own_says_all_and_ends_with_its_code(words: list[str], code: int) -> None:
    argv = [sys.executable, "-m", "kmlab", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code
    assert (done.stdout or done.stderr).endswith("\n")


def test_what_cannot_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "kmlab", "--version"]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode != 0 and "No space left" in done.stderr


@pytest.mark.parametrize("words", [("ssh",), ("ssh", "debian", "--", "true"), ("console",), ("log",)])
def test_what_needs_a_running_guest_says_how_to_get_one(kmlab: Program, lab: Path, words: tuple[str, ...]) -> None:
    (lab / "lab.yaml").write_text(LAB)
    assert kmlab(*words) == (3, "", "kmlab: guest 'debian' is not running\n  hint: kmlab up\n")


def test_down_and_destroy_of_nothing_are_well(kmlab: Program, lab: Path) -> None:
    (lab / "lab.yaml").write_text(LAB)
    assert json.loads(kmlab("down", "--json").out) == {"schema": "kmlab.down/1", "stopped": []}
    assert json.loads(kmlab("destroy", "--json").out) == {"schema": "kmlab.destroy/1", "destroyed": []}


def test_image_list_shows_the_catalogue(kmlab: Program) -> None:
    said = json.loads(kmlab("image", "list", "--json").out)
    assert said["schema"] == "kmlab.images/1"
    image = next(i for i in said["images"] if i["name"] == "debian-12")
    assert (image["family"], image["cached_bytes"]) == ("debian", 0)
    assert "x86_64" in image["architectures"]
    assert "not in the cache" in kmlab("image", "list").out


def test_an_empty_cache_verifies_and_prunes(kmlab: Program) -> None:
    assert json.loads(kmlab("image", "verify", "--json").out) == {"schema": "kmlab.verify/1", "files": []}
    assert json.loads(kmlab("image", "prune", "--json").out) == {"schema": "kmlab.prune/1", "removed": [], "bytes": 0}
    assert (kmlab("image", "verify").out, kmlab("image", "prune").out) == (
        "nothing is in the cache\n",
        "nothing to remove\n",
    )


def test_a_log_with_a_crash_ends_in_1_and_one_without_in_0(kmlab: Program, lab: Path) -> None:
    found = kmlab("crashes", str(OOPS / "null-deref-read-6.12.txt"), "--json")
    assert found.code == 1
    said = json.loads(found.out)
    assert said["schema"] == "kmlab.crashes/1"
    assert said["crashes"][0]["kind"] == "oops"
    (lab / "quiet").write_text("[    1.000000] hello\n")
    assert kmlab("crashes", "quiet") == (0, "nothing found\n", "")
    assert json.loads(kmlab("crashes", "quiet", "--json").out)["unread"] is None


def test_nothing_found_in_a_log_that_was_not_read_is_no_clean_log(kmlab: Program, lab: Path) -> None:
    (lab / "odd").write_text("[    1.000000] hello\nxy BUG: kernel NULL pointer dereference, address: 0\n")
    ended = kmlab("crashes", "odd")
    assert (ended.code, ended.out.splitlines()[-1]) == (2, "nothing found in what could be read")
    said = json.loads(kmlab("crashes", "odd", "--json").out)
    first = "xy BUG: kernel NULL pointer dereference, address: 0"
    assert (said["crashes"], said["unread"]) == ([], {"lines": 1, "first": first})


def test_a_file_that_is_no_log_is_bad_input(kmlab: Program, lab: Path) -> None:
    (lab / "a letter").write_text("Dear Sir,\nnothing went wrong here.\n")
    message = "a letter: this is no kernel log: none of its 2 lines looks like a kernel's"
    ended = kmlab("crashes", "a letter")
    assert (ended.code, ended.out) == (2, "") and ended.err.startswith(f"kmlab: {message}\n  hint: save one with")
    ended = kmlab("crashes", "a letter", "--json")
    assert (ended.code, json.loads(ended.out)["error"]["message"]) == (2, message)


def test_a_log_that_is_not_there_is_bad_input(kmlab: Program) -> None:
    ended = kmlab("crashes", "absent.txt")
    assert (ended.code, ended.err) == (2, "kmlab: absent.txt: cannot read this log: No such file or directory\n")


@pytest.mark.parametrize("param", ["count", "=3", "a b=1"])
def test_a_parameter_that_is_none_is_a_usage_error(kmlab: Program, lab: Path, param: str) -> None:
    (lab / "lab.yaml").write_text(LAB)
    assert kmlab("run", ".", "-p", param).code == 2


def test_a_duration_that_is_none_is_a_usage_error(kmlab: Program, lab: Path) -> None:
    (lab / "lab.yaml").write_text(LAB)
    ended = kmlab("run", ".", "--timeout", "soon")
    assert ended.code == 2
    assert ended.err.startswith("kmlab: --timeout 'soon' must be a time above zero")


@pytest.mark.parametrize(
    ("kernels", "said"),
    [
        (" , ", "kmlab: --kernels names no kernel\n"),
        ("matrix", "kmlab: --kernels matrix, but lab.yaml has no matrix\n"),
        ("6.1,debain@6.12", "kmlab: there is no guest 'debain' in lab.yaml\n  hint: did you mean 'debian'?\n"),
        ("6.1;reboot", "kmlab: 'debian@6.1;reboot' must be a kernel: "),
    ],
)
def test_kernels_that_are_none_are_bad_input_before_anything_starts(
    kmlab: Program, lab: Path, kernels: str, said: str
) -> None:
    (lab / "lab.yaml").write_text(LAB)
    (lab / "Kbuild").write_text("obj-m := x.o\n")
    for command in ("run", "test"):
        ended = kmlab(command, ".", "--kernels", kernels)
        assert ended.code == 2
        assert ended.err.startswith(said), ended.err
