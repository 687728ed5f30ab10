"""What `kmlab watch` shows: the whole program on a pty, its lines without one, and the picture by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from kmlab.cli.output.watch_screen import Screen
from kmlab.common.errors import ConfigError
from kmlab.common.events import Note, Progress, Started
from kmlab.config.lab import Expect
from tests.places import REPOSITORY
from tests.story import LAB, whole_result

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PATIENCE = 60.0


@pytest.fixture
def lab(xdg: Path) -> Path:
    """A folder with a lab.yaml and a module; no guest of it was ever started."""
    folder = xdg / "lab"
    (folder / "hello").mkdir(parents=True)
    (folder / "hello" / "Kbuild").write_text("obj-m := hello.o\n")
    (folder / "hello" / "hello.c").write_text("/* well */\n")
    (folder / "lab.yaml").write_text(LAB.split("modules:")[0])
    return folder


class Terminal:
    """A program on a terminal of 100 by 30."""

    def __init__(self, lab: Path, *words: str) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self._text = ""
        self.process = subprocess.Popen(
            # setsid(1) makes it the terminal's own session, so that ^C there is a signal here.
            ["setsid", "--ctty", "--wait", sys.executable, "-m", "tests.watching", *words],
            cwd=lab,
            env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(REPOSITORY)},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)

    def read(self) -> bool:
        """Whether there was more."""
        if not select.select([self._master], [], [], 0.2)[0]:
            return False
        with contextlib.suppress(OSError):
            chunk = os.read(self._master, 65536)
            self._text += chunk.decode("utf-8", "replace")
            return bool(chunk)
        return False

    @property
    def picture(self) -> list[str]:
        """The lines of the last whole picture."""
        frames = self._text.split("\x1b[H")
        text = CONTROL.sub("", frames[-2]) if len(frames) > 2 else ""
        return [line.rstrip() for line in text.replace("\r", "").split("\n")]

    def shows(self, what: Callable[[list[str]], bool]) -> list[str]:
        end = time.monotonic() + PATIENCE
        while not what(self.picture):
            self.read()
            assert time.monotonic() < end, "\n".join(self.picture)
        return self.picture

    def interrupt(self) -> tuple[int, str]:
        """Press ^C; the exit code, and what stands on the terminal's ordinary screen."""
        os.write(self._master, b"\x03")
        while self.process.poll() is None or self.read():
            self.read()
        os.close(self._master)
        return self.process.returncode, self._text.rpartition("\x1b[?1049l")[2].replace("\r", "")


def waits(lines: list[str], outcome: str, *shown: str) -> bool:
    """Whether all of it has been drawn: verdict, what it waits for, and the lines of which these are parts."""
    return lines[0].startswith(outcome) and all(
        any(text in line for line in lines) for text in ("waiting for a save in", *shown)
    )


def test_the_last_verdict_stays_on_top_and_the_kernels_log_streams_beneath(lab: Path) -> None:
    terminal = Terminal(lab, "watch", "hello")
    first = terminal.shows(lambda lines: waits(lines, "PASS  hello on debian", "world."))
    (rule,) = [number for number, line in enumerate(first) if line.startswith("── waiting")]
    assert re.search(r"waiting for a save in hello \d+ s ─+ verdict 1 at \d\d:\d\d:\d\d ──$", first[rule])
    assert any(r"Hello,\x07 world." in line for line in first[rule + 1 :]), "what a guest says is made harmless"
    assert len(first) == 30

    (lab / "hello" / "hello.c").write_text("#error\n")
    second = terminal.shows(lambda lines: waits(lines, "BUILD-FAILED", "hello/hello.c:7:2", "evidence: ", "Hello,"))
    assert "  hello/hello.c:7:2: error: #error on purpose" in second
    assert any(line.startswith("  evidence: .kmlab/runs/") for line in second), "as one would type it here"
    assert any("Hello," in line for line in second), "the log of before is there still"

    (lab / "lab.yaml").write_text("name: fake\nguest: {}\n")
    third = terminal.shows(lambda lines: any("lab.yaml:2: unknown key 'guest'" in line for line in lines))
    assert third[0].startswith("BUILD-FAILED")

    code, left = terminal.interrupt()
    assert code == 130
    assert "BUILD-FAILED  hello on debian" in left and "kmlab: interrupted" in left
    assert "Traceback" not in left


@pytest.fixture
def lines(lab: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the program where there is no terminal; ended afterwards."""
    started = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.watching", *words],
            cwd=lab,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_with_json_each_verdict_is_a_document_in_a_line_of_its_own(
    lab: Path, lines: Callable[..., subprocess.Popen[str]]
) -> None:
    program = lines("watch", "hello", "--json", "--exec", "echo told of $KMLAB_OUTCOME")
    assert program.stdout
    first = json.loads(program.stdout.readline())
    assert (first["schema"], first["results"][0]["outcome"]) == ("kmlab.run/1", "pass")
    (lab / "hello" / "hello.c").write_text("oops()\n")
    second = json.loads(program.stdout.readline())["results"][0]
    assert (second["outcome"], second["crashes"][0]["function"]) == ("oops", "hello_init")
    assert json.loads((Path(second["artifacts"]["directory"]) / "result.json").read_text())["results"] == [second]
    (lab / "lab.yaml").write_text("name: fake\nguest: {}\n")
    wrong = json.loads(program.stdout.readline())
    assert wrong["schema"] == "kmlab.error/1" and "lab.yaml:2: " in wrong["error"]["message"]
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate(timeout=PATIENCE)
    assert (program.returncode, out) == (130, "")
    assert "--exec: told of pass" in err and "--exec: told of oops" in err
    assert "Traceback" not in err


def test_without_a_terminal_the_verdicts_are_plain_lines(
    lab: Path, lines: Callable[..., subprocess.Popen[str]]
) -> None:
    program = lines("watch", "hello")
    assert program.stdout and program.stderr
    seen = ""
    while "PASS" not in seen:
        seen += program.stdout.readline()
    assert "\x1b" not in seen
    assert r"Hello,\x07 world." in seen
    while "waiting for a save in hello" not in program.stderr.readline():
        pass
    os.killpg(program.pid, signal.SIGTERM)
    program.communicate(timeout=PATIENCE)
    assert program.returncode == 130


def picture(screen: Screen, width: int = 80, height: int = 24) -> list[str]:
    """What the screen would draw."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, highlight=False, color_system=None)
    screen.console = console
    console.print(screen.draw(), end="")
    return [CONTROL.sub("", line).rstrip() for line in out.getvalue().split("\n")][:height]


@pytest.fixture
def screen() -> Screen:
    return Screen(Console(file=io.StringIO()))


def test_a_verdict_has_its_source_lines(screen: Screen, tmp_path: Path) -> None:
    (tmp_path / "oops.c").write_text("".join(f"line {number}\n" for number in range(1, 60)))
    screen.verdict(dataclasses.replace(whole_result(), outcome="oops", title="BUG", folder=tmp_path))
    shown = picture(screen)
    assert shown[0].startswith("OOPS  oops on debian: BUG at oops.c:27 (NOT as expected")
    assert "    >   27  line 27" in shown
    assert any("null_read [oops] oops.c:27" in line for line in shown)


def test_what_is_waited_for_is_said_with_its_seconds_and_last_words(screen: Screen) -> None:
    screen.hear(Started("debian", "build hello"))
    screen.hear(Progress("debian", "build hello", detail="CC [M] hello.o \x1b[2J"))
    screen.hear(Note("debian", "restored, because the last run ended in oops"))
    shown = picture(screen)
    assert shown[0] == "no verdict yet"
    assert shown[1].startswith("── debian: build hello 0 s  CC [M] hello.o \\x1b[2J ──")
    assert shown[2] == "debian: restored, because the last run ended in oops"


@pytest.mark.parametrize(("width", "height"), [(20, 5), (80, 24), (200, 60), (1, 1)])
def test_a_window_of_any_size_is_filled_and_never_overrun(
    screen: Screen, tmp_path: Path, width: int, height: int
) -> None:
    screen.verdict(dataclasses.replace(whole_result(), title="long " * 200, folder=tmp_path, expect=Expect()))
    screen.show_error(ConfigError("wrong " * 100, "mend " * 100))
    screen.waiting("a save in " + "deep/" * 50)
    shown = picture(screen, width, height)
    assert len(shown) <= height
    assert all(len(line) <= width for line in shown)
