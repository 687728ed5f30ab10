"""kmlab in a module's folder without lab.yaml, and help for the words that people type."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from kmlab.cli.options.shared_options import cli_state
from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import silent
from kmlab.config import run_options
from kmlab.config.default_lab import (
    GuestSettings,
    default_lab,
    find_default_lab,
    holds_module,
    parse_settings,
    remember,
)
from kmlab.config.lab import load_lab
from kmlab.host.process.command import observe_programs
from kmlab.kernel.signing.signature import Verdict, verify
from kmlab.run import run
from kmlab.testing import FakeModule, World
from tests.pages import KMLAB
from tests.places import TEST_DATA
from tests.program import Ended, Program

MAKEFILE = "obj-m := hello.o\n"
NOTE = "kmlab: no lab.yaml here: using a guest with defaults (debian-12, 2 CPUs, 1G); `kmlab init` writes a lab.yaml\n"


@pytest.fixture
def module(xdg: Path) -> Path:
    folder = xdg / "My Module"
    folder.mkdir()
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "hello.c").write_text("/* nothing */\n")
    return folder


@pytest.fixture
def kmlab(module: Path) -> Program:
    return Program(module)


class Call(Protocol):
    """Call a command in this process, with a World's host; return its exit code, and what it printed."""

    def __call__(self, *words: str) -> Ended: ...


@pytest.fixture
def call(
    module: Path, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Commands in the module's folder."""
    monkeypatch.chdir(module)
    monkeypatch.setattr(cli_state, "build_host", lambda: world.host)
    world.modules["My-Module"] = FakeModule(name="My-Module")

    def called(*words: str) -> Ended:
        capsys.readouterr()
        code = KMLAB.main(list(words), standalone_mode=False)
        return Ended(code or 0, *capsys.readouterr())

    yield called
    observe_programs(None)


# --- the lab of defaults -------------------------------------------------------------------------------------------


def test_the_settings_make_one_guest_named_after_its_image(module: Path) -> None:
    settings = parse_settings("ubuntu-24.04", "hwe", "2G", 4, True)
    lab = default_lab(module, settings)
    (guest,) = lab.guests.values()
    assert (lab.name, guest.name, lab.default) == ("my-module", "ubuntu-24-04", ("ubuntu-24-04",))
    assert (guest.image, guest.kernel, guest.memory, guest.cpus) == ("ubuntu-24.04", "hwe", 2 << 30, 4)
    assert guest.secure_boot
    assert default_lab(module, GuestSettings()).guests["debian-12"].memory == 1 << 30


def test_a_run_without_lab_yaml_is_a_run_with_its_evidence_in_the_folder(module: Path) -> None:
    lab = default_lab(module, GuestSettings())
    with World() as world:
        world.modules["My-Module"] = FakeModule(name="My-Module")
        result = run.run(world.host, lab, lab.guest("debian-12"), lab.module_for(module), run_options.Options(), silent)
    assert (result.outcome, result.guest) == ("pass", "debian-12")
    assert result.directory is not None and result.directory.parent == module / ".kmlab" / "runs"


def test_the_folder_s_path_is_what_tells_labs_apart(module: Path, xdg: Path) -> None:
    other = xdg / "other" / module.name
    shutil.copytree(module, other)
    labs = [default_lab(folder, GuestSettings()) for folder in (module, other)]
    roots = {paths.LabFiles.of(lab.name, lab.path).root for lab in labs}
    assert len(roots) == 2 and len({lab.name for lab in labs}) == 1


def test_later_commands_find_the_guest_of_the_last_run_also_from_below(module: Path) -> None:
    assert find_default_lab(module) is None
    settings = GuestSettings(image="debian-13", memory=512 << 20)
    remember(default_lab(module, settings), settings)
    (module / "src").mkdir()
    for place in (module, module / "src"):
        found = find_default_lab(place)
        assert found is not None and found.folder == module
        assert found.guests["debian-13"].memory == 512 << 20
    (record,) = paths.state_home().rglob("defaults.json")
    record.write_text('{"image": "gone", "more": 1}')
    found = find_default_lab(module)
    assert found is not None and list(found.guests) == ["debian-12"]


def test_runs_lie_with_the_state_where_the_folder_is_not_writable(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = paths.LabFiles.of("m", module / "lab.yaml")
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert files.runs == paths.state_home() / "runs" / files.root.name


@pytest.mark.parametrize("file", ["Kbuild", "GNUmakefile", "makefile", "Makefile", "dkms.conf"])
def test_a_module_s_folder_has_a_file_that_says_how_to_build(tmp_path: Path, file: str) -> None:
    assert not holds_module(tmp_path)
    (tmp_path / file).mkdir()
    assert not holds_module(tmp_path)
    (tmp_path / file).rmdir()
    (tmp_path / file).touch()
    assert holds_module(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--memory", "12"), "--memory '12' must be a size with its unit, such as 512M or 1G"),
        (("--memory", "1K"), "--memory '1K' must be from 256M to 1T"),
        (("--kernel", "6.1;reboot"), "--kernel '6.1;reboot' must be a kernel: "),
        (("--image", "debain-12"), "--image: unknown image 'debain-12'\n  hint: did you mean 'debian-12'?"),
        (("--image", "../../etc/passwd"), "--image: unknown image '../../etc/passwd'"),
    ],
)
def test_an_option_that_is_wrong_is_named(kmlab: Program, options: tuple[str, ...], message: str) -> None:
    for words in (("run", "."), ("watch", ".")):
        ended = kmlab(*words, *options)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith(f"kmlab: {message}")


@pytest.mark.parametrize("words", [("run", "."), ("up",), ("build", "."), ("load", "."), ("test",)])
def test_one_line_says_that_the_lab_is_one_of_defaults(call: Call, words: tuple[str, ...]) -> None:
    ended = call(*words, "--json")
    assert ended.code == 0
    assert ended.err.startswith(NOTE) and ended.err.count("lab.yaml here") == 1
    assert '"debian-12"' in ended.out
    assert json.loads(call("status", "--json").out)["guests"][0]["record"]["name"] == "debian-12"


def test_commands_after_a_run_use_its_guest(call: Call, module: Path, world: World) -> None:
    call("load", ".", "--memory", "512M")
    said = call("unload", ".", "--json")
    assert (said.code, "lab.yaml" in said.err, "restored" in said.err) == (0, False, False)
    assert call("down").out == "stopped: debian-12\n"
    assert call("destroy").out == "destroyed: debian-12\n"
    assert find_default_lab(module) is None


def test_the_line_has_what_the_options_change(call: Call) -> None:
    said = call("run", ".", "--memory", "512M", "--cpus", "1").err
    assert "(debian-12, 1 CPUs, 0.5G); " in said.splitlines()[0]


def test_test_takes_the_modules_below_a_folder_of_modules(
    call: Call, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(module.parent)
    answer = json.loads(call("test", "--json").out)
    assert [result["module"] for result in answer["results"]] == ["My-Module"]


def test_lab_yaml_wins_and_an_option_beside_it_is_an_error(call: Call, module: Path) -> None:
    (module / "lab.yaml").write_text("name: t\nguests:\n  own: {image: debian-12}\n")
    ended = call("run", ".", "--json")
    assert "no lab.yaml" not in ended.err
    assert json.loads(ended.out)["results"][0]["guest"] == "own"
    with pytest.raises(ConfigError, match="--memory is for a folder without"):
        call("run", ".", "--memory", "2G")


def test_a_folder_without_a_module_is_no_lab(kmlab: Program, module: Path) -> None:
    ended = kmlab("run", "absent", at=module.parent)
    assert ended.code == 2
    assert ended.err.startswith("kmlab: no lab.yaml in ") and "absent has none" in ended.err
    assert not list(paths.state_home().rglob("*"))


def test_a_folder_that_is_no_module_s_has_no_key(kmlab: Program, module: Path) -> None:
    ended = kmlab("sign", "--mok", at=module.parent)
    assert ended.code == 2 and ended.err.startswith("kmlab: no lab.yaml here, so there is no lab key to sign with")


def test_files_are_signed_with_the_key_of_the_folder(kmlab: Program, module: Path) -> None:
    shutil.copy(TEST_DATA / "ko" / "frames.ko", module)
    ended = kmlab("sign", "frames.ko")
    assert (ended.code, ended.err) == (0, NOTE)
    again = kmlab("sign", "--mok", "--json")
    assert (again.code, again.err) == (0, ""), "the lab is known by now"
    (pair,) = (paths.state_home() / "keys").glob("my-module-*")
    from cryptography import x509

    certificate = x509.load_der_x509_certificate((pair / "mok.der").read_bytes())
    assert verify((module / "frames.ko").read_bytes(), certificate) is Verdict.VALID


# --- init ----------------------------------------------------------------------------------------------------------


def test_init_adopts_the_modules_of_a_folder_and_adds_none(kmlab: Program, module: Path) -> None:
    (module / "drivers" / "ring").mkdir(parents=True)
    (module / "drivers" / "ring" / "Kbuild").write_text("obj-m := ring.o\n")
    (module / "Makefile").unlink()
    (module / "tool").mkdir()
    (module / "tool" / "Makefile").write_text("all:\n\techo\n")
    ended = kmlab("init", "--image", "ubuntu-24.04", "--guest", "noble")
    assert ended.code == 0 and "for 1 module; next, in that folder: kmlab run drivers/ring" in ended.out
    assert not (module / "hello").exists()
    lab = load_lab(module / "lab.yaml")
    assert {name: str(entry.source) for name, entry in lab.modules.items()} == {"ring": "drivers/ring"}
    assert {name: guest.image for name, guest in lab.guests.items()} == {
        "noble": "ubuntu-24.04",
        "debian": "debian-12",
    }
    assert lab.default == ("noble",)


def test_init_in_a_module_s_own_folder_adopts_that(kmlab: Program, module: Path) -> None:
    assert kmlab("init").code == 0
    lab = load_lab(module / "lab.yaml")
    assert [lab.locate(entry.source).resolve() for entry in lab.modules.values()] == [module]
    assert {path.name for path in module.iterdir()} == {"Makefile", "hello.c", "lab.yaml", ".lab.schema.json"}


def test_init_gives_modules_of_one_name_names_of_their_own(kmlab: Program, xdg: Path) -> None:
    for week in ("week 1", 'we"ek: 2'):
        (xdg / "course" / week / "hello").mkdir(parents=True)
        (xdg / "course" / week / "hello" / "Kbuild").write_text("obj-m := hello.o\n")
    assert kmlab("init", at=xdg / "course").code == 0
    lab = load_lab(xdg / "course" / "lab.yaml")
    assert sorted(str(entry.source) for entry in lab.modules.values()) == ['we"ek: 2/hello', "week 1/hello"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image", "debain"), "--image: unknown image 'debain'"),
        (("--guest", "A b"), "--guest 'A b' must be lower-case"),
    ],
)
def test_init_with_a_wrong_word_writes_nothing(
    kmlab: Program, module: Path, options: tuple[str, ...], message: str
) -> None:
    ended = kmlab("init", *options)
    assert ended.code == 2 and ended.err.startswith(f"kmlab: {message}")
    assert not (module / "lab.yaml").exists()


# --- validate ------------------------------------------------------------------------------------------------------

WRONG = """\
name: t
guests:
  debian: {image: debian-12}
  fedora: {image: fedora-42}
  arm: {image: {name: debian-12-cloud, arch: aarch64}, recipe: nix}
modules:
  gone: {source: gone}
  empty: {source: .}
"""


def test_validate_names_every_problem_and_touches_nothing(kmlab: Program, module: Path) -> None:
    (module / "Makefile").unlink()
    (module / "lab.yaml").write_text(WRONG)
    ended = kmlab("validate", "--json")
    answer = json.loads(ended.out)
    assert ended.code == 2 and answer["guests"] == ["debian", "fedora", "arm"]
    places = [problem["message"].split(": ")[0] for problem in answer["problems"]]
    assert places == ["lab.yaml:4", "no recipe for the family 'nix'", "lab.yaml:7", "lab.yaml:8"]
    assert "lab.yaml:4: unknown image 'fedora-42'" in ended.err
    assert not list(module.parent.glob("state/**/*")) and not list(module.parent.glob("cache/**/*"))


def test_validate_of_a_correct_lab_is_one_line(kmlab: Program, module: Path) -> None:
    (module / "lab.yaml").write_text("name: t\nguests: {a: {image: debian-12}}\nmodules: {m: {source: .}}\n")
    assert kmlab("validate") == (0, "lab.yaml: correct: guests a; modules m\n", "")


def test_validate_of_a_file_that_is_no_lab_is_an_error(kmlab: Program, module: Path) -> None:
    (module / "lab.yaml").write_text("name: t\nguest: {}\n")
    ended = kmlab("validate", "--json")
    assert (ended.code, json.loads(ended.out)["schema"]) == (2, "kmlab.error/1")


def test_an_unknown_image_is_an_error_in_status_too(kmlab: Program, module: Path) -> None:
    (module / "lab.yaml").write_text(WRONG)
    ended = kmlab("status")
    assert ended.code == 2 and ended.err.startswith("kmlab: lab.yaml:4: unknown image 'fedora-42'")


# --- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("stop", "down"),
        ("shell", "ssh"),
        ("ls", "status"),
        ("start", "up"),
        ("rm", "destroy"),
        ("dmesg", "log"),
        ("insmod", "load"),
        ("rmmod", "unload"),
        ("images", "image list"),
        ("stauts", "status"),
        ("image ls", "image list"),
        ("image rm", "image prune"),
        ("image biuld", "image build"),
    ],
)
def test_an_unknown_command_names_the_one_that_was_meant(kmlab: Program, words: str, meant: str) -> None:
    ended = kmlab(*words.split())
    assert ended.code == 2
    assert f"no command '{words}': did you mean `kmlab {meant}`?" in ended.err


def test_a_word_like_no_command_leads_to_the_help(kmlab: Program) -> None:
    ended = kmlab("xyzzy", "--json")
    assert json.loads(ended.out)["error"]["message"] == "no command 'xyzzy': see `kmlab --help`"


def test_the_help_of_sign_with_has_every_word(kmlab: Program) -> None:
    said = next(p.help for p in KMLAB.commands["run"].params if "--sign-with" in p.opts)
    words = (run_options.AUTO, run_options.NO_KEY, run_options.LAB_KEY, run_options.WRONG_KEY)
    for word in (*words, run_options.ALTERED, run_options.STRIPPED):
        assert f"{word}: " in said


# --- completion ----------------------------------------------------------------------------------------------------


def completed(folder: Path, line: str) -> list[str]:
    """What bash offers for the last word of a line."""
    asked = {"_KMLAB_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    argv = [sys.executable, "-c", "from kmlab.cli.app import app; app(prog_name='kmlab')"]
    done = subprocess.run(
        argv, cwd=folder, env={**os.environ, **asked}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes_guests_modules_kernels_and_images(module: Path) -> None:
    (module / "drivers" / "ring").mkdir(parents=True)
    (module / "lab.yaml").write_text(
        "name: t\nguests:\n  debian: {image: debian-12}\n  trixie: {image: debian-13}\n"
        'matrix: ["6.12"]\nmodules:\n  ring_test: {source: drivers/ring}\n'
    )
    paths.write_json(paths.known_kernels(), ["6.1", "6.12.95+deb12"])
    assert completed(module, "kmlab up ") == ["debian", "trixie"]
    assert completed(module, "kmlab run . -g t") == ["trixie"]
    assert completed(module, "kmlab up trixie@6.12") == ["trixie@6.12", "trixie@6.12.95+deb12"]
    assert completed(module, "kmlab run dr") == ["drivers/ring"]
    assert completed(module, "kmlab test ring") == ["ring_test"]
    assert completed(module, "kmlab run . --kernels 6.1,back") == ["6.1,backports"]
    assert completed(module, "kmlab run . --image ubuntu-24") == ["ubuntu-24.04"]
    assert "debian-13" in completed(module, "kmlab image build debian")


@pytest.mark.parametrize("text", ["name: [", "name: t\n", None])
def test_completion_is_silent_about_a_lab_that_is_wrong(module: Path, text: str | None) -> None:
    if text is not None:
        (module / "lab.yaml").write_text(text)
    paths.make_folder(paths.cache_home())
    paths.known_kernels().write_text("[1, {}]")
    assert completed(module, "kmlab up ") == []
    assert completed(module, "kmlab run . --kernels back") == ["backports"]


def test_the_options_of_settings_are_those_that_were_given() -> None:
    assert GuestSettings(memory=1, secure_boot=True).options == ["--memory", "--secure-boot"]
    with pytest.raises(ConfigError, match="--kernel"):
        parse_settings(None, "a b", None, None, False)
