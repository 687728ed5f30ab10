"""The program as a person or a script calls it, in a folder: with nobody at a terminal, or with one who types."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests import documents


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Program:
    """`python -m kmlab` with the first words that a file's tests have in common."""

    folder: Path
    head: tuple[str, ...] = ()

    def __call__(self, *words: str, at: Path | None = None, **environment: str) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "kmlab", *self.head, *words],
            cwd=at or self.folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "Traceback" not in done.stderr or "--debug" in words, done.stderr
        if "--json" in words:
            documents.check(done.stdout)
        return Ended(done.returncode, done.stdout, done.stderr)

    def typed(self, *words: str, question: str, answer: str) -> tuple[int, str]:
        """At a terminal, where `answer` is typed after `question`: the exit code, and all that was shown."""
        master, slave = pty.openpty()
        process = subprocess.Popen(
            # A session of its own with that terminal, as a person's shell has.
            ["setsid", "--ctty", "--wait", sys.executable, "-m", "kmlab", *self.head, *words],
            cwd=self.folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        shown, typed = b"", False
        while True:
            if not select.select([master], [], [], 60)[0]:
                process.kill()
                raise AssertionError(f"nothing more is shown: {shown!r}")
            try:
                shown += os.read(master, 4096)
            except OSError:  # The last who had it open has gone.
                break
            if not typed and question.encode() in shown:
                # What is typed before the echo is switched off is thrown away, and shown.
                while termios.tcgetattr(master)[3] & termios.ECHO and process.poll() is None:
                    time.sleep(0.01)
                os.write(master, answer.encode() + b"\n")
                typed = True
        os.close(master)
        return process.wait(60), shown.decode()
