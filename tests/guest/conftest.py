"""Real guests: one base and one checkpoint for the whole suite, from the cache that `make demo` uses too.

The state lies in a folder of the suite's own, so that a person's labs are left alone; only the ssh key is theirs, as
the base knows it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kmlab.common import paths
from kmlab.host.channel.ssh import ensure_identity
from kmlab.host.hypervisor import hypervisor
from tests import documents

REPOSITORY = Path(__file__).parents[2]
LAB_YAML = REPOSITORY / "lab.yaml"
FIRST_START = 2400.0
"""Seconds for a first start, which builds the image and bakes the base."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.guest)


@dataclass
class Answer:
    """How a kmlab command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def result(self) -> dict[str, Any]:
        """The only run of a `kmlab run --json`."""
        (result,) = self.json["results"]
        return dict(result)


@dataclass
class Lab:
    """A lab.yaml, and the program as a person calls it."""

    file: Path
    environment: dict[str, str]

    def command(self, *words: str) -> list[str]:
        command, *rest = words
        head = rest[:1] if command in ("image", "device") else []
        return [sys.executable, "-m", "kmlab", command, *head, "--lab", str(self.file), *rest[len(head) :]]

    def __call__(self, *words: str, code: int | None = 0, timeout: float = 600.0) -> Answer:
        done = subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        answer = Answer(done.returncode, done.stdout, done.stderr)
        if "--json" in words:
            documents.check(done.stdout)
        assert code is None or done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return answer

    def start(self, *words: str) -> subprocess.Popen[str]:
        """The program in the background, with its output to be read."""
        return subprocess.Popen(
            self.command(*words),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @contextlib.contextmanager
    def beside(self, *words: str) -> Iterator[Callable[[], Answer]]:
        """The program at work while others are; what is given waits for its end. The lab is destroyed afterwards."""
        out, err = self.file.with_name("out"), self.file.with_name("err")
        with out.open("wb") as its_out, err.open("wb") as its_err:
            process = subprocess.Popen(
                self.command(*words), env=self.environment, stdout=its_out, stderr=its_err, start_new_session=True
            )

        def ended() -> Answer:
            return Answer(process.wait(timeout=900), out.read_text(), err.read_text())

        try:
            yield ended
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(timeout=60)
            self("destroy", code=None)

    @property
    def state(self) -> Path:
        return Path(self.environment["XDG_STATE_HOME"]) / "kmlab"

    def write(self, text: str) -> None:
        self.file.write_text(text)


def to_be_run(request: pytest.FixtureRequest, test: str) -> bool:
    """Whether a test is among those that this session runs."""
    return any(item.name == test for item in request.session.items)


def wait_until(what: str, true: Any, seconds: float = 60.0) -> None:
    """Wait for something that a guest or a process does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


def interrupt(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """As ^C does: the signal goes to the whole process group of the terminal."""
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


@pytest.fixture(scope="session")
def environment() -> Iterator[dict[str, str]]:
    """XDG_STATE_HOME in a short folder of the suite's own."""
    ensure_identity(paths.identity_key())
    state = Path(tempfile.mkdtemp(prefix="kmt", dir="/tmp"))
    keys = state / "kmlab" / "keys"
    keys.mkdir(parents=True, mode=0o700)
    for suffix in ("", ".pub"):
        shutil.copy(paths.identity_key().with_suffix(suffix), keys)
    yield {**os.environ, "XDG_STATE_HOME": str(state)}
    hypervisor.kill(state)
    shutil.rmtree(state, ignore_errors=True)


@pytest.fixture(scope="session")
def base(environment: dict[str, str]) -> Path:
    """The folder of the suite's base; made now if the cache has none."""
    lab = Lab(LAB_YAML, environment)
    answer = lab("up", "--json", timeout=FIRST_START)
    return paths.bases() / str(answer.json["guests"][0]["base"])


@pytest.fixture(scope="session")
def repository(base: Path, environment: dict[str, str]) -> Lab:
    """kmlab's own lab with its guest up."""
    return Lab(LAB_YAML, environment)


@pytest.fixture
def lab(base: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[Lab]:
    """An empty lab of the test's own, on the suite's base; destroyed afterwards."""
    made = Lab(tmp_path / "lab.yaml", environment)
    made.write("name: t\nguests:\n  debian: {image: debian-12, cpus: 2, memory: 1G}\n")
    yield made
    made("destroy", code=None)


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    """A copy of examples/hello that a test may change."""
    return Path(shutil.copytree(REPOSITORY / "examples" / "hello", tmp_path / "hello"))
