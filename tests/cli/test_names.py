"""Names of any bytes: of a module's folder, of files in it, in arguments; in JSON, JUnit, evidence, on a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kmlab.cli.output import progress, render
from kmlab.common import paths
from kmlab.common.events import Event, Finished, Note, Started, escape_surrogates, printable
from kmlab.config.lab import Lab
from kmlab.report.formats import github, junit
from kmlab.report.timeline import write as write_timeline
from kmlab.run import result, run
from kmlab.testing import Act, FakeModule, World

NAME = os.fsdecode(b"m\xff\x1b[31m\xe2\x80\xae")
BYTES = b"m\\xff\\x1b[31m\\u202e"


def test_a_byte_that_is_no_utf_8_is_spelled_as_a_byte() -> None:
    assert printable(os.fsdecode(b"m\xff")) == r"m\xff"
    assert escape_surrogates({os.fsdecode(b"\x80"): [os.fsdecode(b"\xe9"), ("\ud800", 3, None)]}) == {
        r"\x80": [r"\xe9", [r"\ud800", 3, None]]
    }


def test_what_the_lab_keeps_of_such_a_name_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {NAME: [NAME, "é", "\\udcff"]}
    paths.write_json(tmp_path / "kept.json", value)
    assert paths.read_json(tmp_path / "kept.json") == value
    assert (tmp_path / "kept.json").read_bytes().decode()
    assert paths.digest_of(NAME) != paths.digest_of("m")


@pytest.mark.parametrize(
    "build", [Act(), Act(code=2, error="m\ufffd\x1b[31m/a.c:3:1: error: no\n")], ids=["good", "bad"]
)
def test_a_run_of_a_folder_with_such_a_name(
    lab: Lab, world: World, capfd: pytest.CaptureFixture[str], tmp_path: Path, build: Act
) -> None:
    folder = lab.folder / NAME
    (folder / os.fsdecode(b"sub\xfe")).mkdir(parents=True)
    (folder / "Kbuild").write_text("obj-m := a.o\n")
    (folder / os.fsdecode(b"sub\xfe/\xfd.h")).write_text("")
    wanted = lab.module_for(folder)
    world.modules[wanted.name] = FakeModule(name=wanted.name, build=build)
    events: list[Event] = []
    found = run.run(world.host, lab, lab.guest("debian"), wanted, run.Options(), events.append)
    assert found.outcome == ("pass" if build.code == 0 else "build-failed"), found.reason
    render.document(result.document([found]))
    render.verdict(found)
    render.print_lines(github.github_annotations([found]))
    paths.write_text(tmp_path / os.fsdecode(b"junit\xff.xml"), junit.text([found]))
    write_timeline(tmp_path / os.fsdecode(b"timeline\xff.svg"), [found])
    with progress.reporting() as tell:
        for event in (*events, Note(NAME, NAME), Started(NAME, NAME), Finished(NAME, NAME, 1.0, NAME)):
            tell(event)
    out, err = capfd.readouterr()
    assert "\x1b" not in out + err and "\u202e" not in out + err
    assert json.loads(out[: out.index("\n}\n") + 2])["results"][0]["source"] == r"m\xff" + "\x1b[31m\u202e"
    assert found.directory is not None
    for file in (*found.directory.iterdir(), tmp_path / os.fsdecode(b"junit\xff.xml")):
        file.read_bytes().decode("utf-8")
    json.loads((found.directory / "result.json").read_bytes())


def kmlab(folder: Path, *words: bytes | str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}
    argv = [sys.executable, "-m", "kmlab", *words]
    return subprocess.run(argv, cwd=os.fsencode(folder) + b"/l\xff", env=environment, capture_output=True, check=False)


@pytest.mark.parametrize(
    "words",
    [
        ("run", b"m\xff", "--json"),
        ("run", b"absent\xff", "--json"),
        ("run", b"empty\xff", "--json"),
        ("run", ".", "--guest", b"g\xff", "--json"),
        ("run", ".", "-p", b"\xff=1", "--json"),
        ("run", ".", "--kernels", b"6.1\xff", "--json"),
        ("run", ".", "--timeline", b"absent\xff/x.svg", "--json"),
        ("test", b"absent\xff", "--json"),
        ("test", "--junit", b"absent\xff/x.xml", "--json"),
        ("crashes", b"absent\xff", "--json"),
        ("crashes", "lab.yaml", "--module", b"empty\xff", "--json"),
        ("status", "--lab", b"absent\xff", "--json"),
        ("sign", b"absent\xff.ko", "--json"),
        ("reset", b"g\xff", "--json"),
        (b"no\xffcommand", "--json"),
        ("run", b"--no\xffoption", "--json"),
    ],
)
def test_the_program_says_one_clear_error_and_ends_with_2(tmp_path: Path, words: tuple[bytes | str, ...]) -> None:
    place = os.fsencode(tmp_path) + b"/l\xff"
    os.makedirs(place + b"/empty\xff")
    os.makedirs(place + b"/m\xff")
    Path(os.fsdecode(place), "lab.yaml").write_text("name: l\nguests:\n  g: {image: no-such-image}\n")
    Path(os.fsdecode(place + b"/m\xff"), "Kbuild").write_text("obj-m := a.o\n")
    ended = kmlab(tmp_path, *words)
    assert b"Traceback" not in ended.stderr, ended.stderr.decode("utf-8", "replace")
    assert ended.returncode in ((2, 3) if words[1] == b"m\xff" else (2,)), ended
    ended.stderr.decode("utf-8")
    document = json.loads(ended.stdout.decode("utf-8"))
    assert document["schema"] in ("kmlab.error/1", "kmlab.run/1")
    document_text = json.dumps(document, ensure_ascii=False)
    document_text.encode("utf-8")
