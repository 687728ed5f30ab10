"""Provide what a benchmark works in: its own lab with its own state, on the cache that all labs share."""

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from kmlab.common import paths
from kmlab.host.channel.ssh import ensure_identity
from kmlab.host.hypervisor import hypervisor

REPOSITORY = Path(__file__).parents[1]
SCRATCH = REPOSITORY / ".kmlab" / "bench"
"""The folder of the installed companions and of the records of all runs."""
_LAB = "name: bench\nguests:\n  debian: {image: debian-12, cpus: 2, memory: 1G}\n"


class World:
    """A lab for one benchmark; `opened` makes it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.lab = folder / "lab.yaml"
        self.edits = 0

    def kmlab(self, *words: str, accept: Sequence[int] = (0,), lab: Path | None = None) -> tuple[float, str]:
        """Run a kmlab command; return its seconds and its stdout."""
        command, *rest = words
        # kmlab's options go before the `--` of a command for the guest.
        argv = [sys.executable, "-m", "kmlab", command, "--lab", str(lab or self.lab), *rest]
        return self.run(argv, accept=accept)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        accept: Sequence[int] = (0,),
        env: Mapping[str, str] | None = None,
        both: bool = False,
    ) -> tuple[float, str]:
        """Run any program; return its seconds and its stdout, or both streams."""
        began = time.perf_counter()
        done = subprocess.run(
            [str(word) for word in argv],
            env={**self.environment, **(env or {})},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        took = time.perf_counter() - began
        if done.returncode not in accept:
            raise RuntimeError(f"{argv}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return took, done.stdout + (done.stderr if both else "")

    def run_json(self, *words: str, accept: Sequence[int] = (0,), lab: Path | None = None) -> tuple[float, Any]:
        """Run a kmlab command with --json; return its seconds and its document."""
        command, *rest = words
        took, out = self.kmlab(command, "--json", *rest, accept=accept, lab=lab)
        return took, json.loads(out)

    @contextlib.contextmanager
    def started(self, *words: str) -> Iterator[IO[str]]:
        """Start a kmlab command that keeps running; yield its stdout, and interrupt it at the end."""
        command, *rest = words
        argv = [sys.executable, "-m", "kmlab", command, "--lab", str(self.lab), *rest]
        process = subprocess.Popen(
            argv,
            env=dict(self.environment),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()

    def copied(self, example: str) -> Path:
        """Return a copy of an example that a benchmark may change."""
        folder = self.folder / example
        if not folder.exists():
            shutil.copytree(REPOSITORY / "examples" / example, folder)
        return folder

    def edit(self, source: Path) -> None:
        """Change a file as a user does, so that the module built from it changes, too."""
        self.edits += 1
        lines = [line for line in source.read_text().splitlines() if not line.startswith("MODULE_INFO(edit,")]
        source.write_text("\n".join([*lines, f'MODULE_INFO(edit, "{self.edits}");']) + "\n")

    def checkpoint(self) -> Path:
        """Return the folder of the checkpoint that the lab's guest starts from."""
        _, document = self.run_json("up")
        return paths.checkpoints() / str(document["guests"][0]["checkpoint"])


@contextlib.contextmanager
def opened() -> Iterator[World]:
    """Yield a world; remove its guests afterwards, and touch no other lab."""
    ensure_identity(paths.identity_key())
    # Short, because it holds sockets; the ssh key is the user's, because the cached bases know it.
    state = Path(tempfile.mkdtemp(prefix="kmb", dir="/tmp"))
    keys = state / "kmlab" / "keys"
    keys.mkdir(parents=True, mode=0o700)
    for suffix in ("", ".pub"):
        shutil.copy(paths.identity_key().with_suffix(suffix), keys)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "XDG_STATE_HOME": str(state)}
    # A user's Python keeps its compiled files; without them, each command would compile again.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # Not in /tmp: a companion's guest that uses the host's root has its own /tmp.
    world = World(Path(tempfile.mkdtemp(prefix="lab", dir=SCRATCH)), environment)
    world.lab.write_text(_LAB)
    try:
        yield world
    finally:
        with contextlib.suppress(RuntimeError):
            world.kmlab("destroy")
        hypervisor.kill(state)
        shutil.rmtree(state, ignore_errors=True)
        shutil.rmtree(world.folder, ignore_errors=True)
