"""Kill, stop and interrupt kmlab, its worker and QEMU at seeded moments, for hours: `make campaign`.

After each blow the next run must pass, and from time to time `kmlab destroy` must leave nothing. A step that fails
prints the command that repeats it. What has passed is kept in build/campaign/, where an interrupted campaign goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.host.channel.ssh import ensure_identity

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRESS = REPOSITORY / "build" / "campaign"
HELLO = REPOSITORY / "examples" / "hello"
LAB = "name: campaign\nguests:\n  debian: {image: debian-12}\n"
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("up",),
    ("run", str(HELLO)),
    ("run", str(HELLO), "--fresh"),
    ("test", str(HELLO)),
    ("sign", "--mok"),
    ("reset",),
    ("down",),
    ("destroy",),
)
VICTIMS = ("kmlab", "worker", "qemu")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
LONGEST = 900.0
"""Seconds that a command may take."""
_DESTROY_EVERY = 8


@dataclass(frozen=True, slots=True)
class Blow:
    """One step: this command is hit once, at this moment."""

    command: tuple[str, ...]
    victim: str
    number: int
    after: float

    @classmethod
    def of(cls, seed: int, step: int) -> Blow:
        chance = random.Random(f"{seed}/{step}")
        return cls(
            chance.choice(COMMANDS), chance.choice(VICTIMS), int(chance.choice(SIGNALS)), 0.1 + 6 * chance.random() ** 2
        )

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return f"{name} to {self.victim} {self.after:.2f} s into `kmlab {' '.join(self.command)}`"


class Home:
    """A lab, a state home and a folder for temporary files of the campaign's own, on the user's cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.temporary = folder, folder / "s", folder / "t"
        self.temporary.mkdir()
        (folder / "lab.yaml").write_text(LAB, encoding="utf-8")
        # A base knows the user's ssh key: with another one it would be made again.
        keys = self.state / "kmlab" / "keys"
        keys.mkdir(parents=True, mode=0o700)
        ensure_identity(paths.identity_key())
        for suffix in ("", ".pub"):
            shutil.copy(paths.identity_key().with_suffix(suffix), keys)
        self.environment = {**os.environ, "XDG_STATE_HOME": str(self.state), "TMPDIR": str(self.temporary)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "kmlab", *words, "--lab", str(self.folder / "lab.yaml")]
        return subprocess.Popen(
            argv,
            env=self.environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def command(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        out, _ = process.communicate(timeout=LONGEST)
        return process.returncode, out

    def processes(self, victim: str, kmlab: int) -> list[int]:
        """Return the pids of a victim: of this home alone."""
        if victim == "kmlab":
            return [kmlab]
        needle, kind = os.fsencode(self.state), b"libvirt_worker" if victim == "worker" else b"qemu-system"
        return [pid for pid, words in _command_lines() if needle in words and kind in words]

    def left(self) -> list[str]:
        """Return what a destroyed lab has left: processes, folders of guests, temporary files."""
        found = [f"process {pid}" for pid, words in _command_lines() if os.fsencode(self.state) in words]
        labs = self.state / "kmlab" / "labs"
        found += [str(path) for path in labs.glob("*/*") if path.is_dir()]
        return found + [str(path) for path in self.temporary.iterdir()]


def strike(home: Home, blow: Blow) -> str | None:
    """Hit a command, and return what is wrong afterwards; None if all is well."""
    process = home.start(*blow.command)
    time.sleep(blow.after)
    struck = home.processes(blow.victim, process.pid)
    for pid in struck:
        _send(pid, blow.number)
    if blow.number == signal.SIGSTOP:
        time.sleep(1)
        _send(process.pid, signal.SIGKILL)
        for pid in struck:
            _send(pid, signal.SIGCONT if blow.victim == "qemu" else signal.SIGKILL)
    out, _ = process.communicate(timeout=LONGEST)
    if "Traceback" in out:
        return f"a traceback:\n{out}"
    code, out = home.command("run", str(HELLO))
    return None if code == 0 else f"the next run ended with {code}:\n{out}"


def destroyed(home: Home) -> str | None:
    """Destroy the lab, and return what is wrong afterwards."""
    code, out = home.command("destroy")
    left = home.left()
    return f"destroy ended with {code} and left {left}:\n{out}" if code or left else None


def steps(home: Home, seed: int, numbers: Sequence[int]) -> Iterator[tuple[int, str, str | None]]:
    """Take steps, and yield each number with what was done and what went wrong."""
    for number in numbers:
        blow = Blow.of(seed, number)
        problem = strike(home, blow)
        if problem is None and (number % _DESTROY_EVERY == 0 or len(numbers) == 1):
            problem = destroyed(home)
        yield number, str(blow), problem


def main() -> int:
    """Take the steps that are left; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="which campaign; default: 1")
    parser.add_argument("--steps", type=int, default=200, help="how many steps it has; default: 200")
    parser.add_argument("--only", type=int, help="take this step alone, to repeat a failure")
    wanted = parser.parse_args()
    PROGRESS.mkdir(parents=True, exist_ok=True)
    record = PROGRESS / f"seed-{wanted.seed}.json"
    done: dict[str, str | None] = json.loads(record.read_text()) if record.exists() and wanted.only is None else {}
    numbers = [wanted.only] if wanted.only is not None else [n for n in range(wanted.steps) if str(n) not in done]
    with tempfile.TemporaryDirectory(prefix="kmc", dir="/tmp") as folder:
        home = Home(Path(folder))
        try:
            for number, what, problem in steps(home, wanted.seed, numbers):
                done[str(number)] = problem
                print(f"{'FAILED' if problem else 'ok':6} {number:4}  {what}", flush=True)
                if problem:
                    print(f"{problem}\nrepeat: .venv/bin/python tools/campaign.py --seed {wanted.seed} --only {number}")
                if wanted.only is None:
                    record.write_text(json.dumps(done, indent=1))
        finally:
            home.command("destroy")
    failed = [number for number, problem in done.items() if problem]
    print(f"tried {len(done)}, survived {len(done) - len(failed)}")
    return 1 if failed else 0


def _command_lines() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                yield int(entry.name), (entry / "cmdline").read_bytes()
            except OSError:
                continue


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
