"""Run programs. Only this file imports subprocess.

Every program is a list of arguments and has a deadline. It ends with all its children at the deadline, on Ctrl-C, or
when kmlab ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kmlab.common import paths
from kmlab.common.errors import CommandFailed, LabError
from kmlab.common.events import Deadline
from kmlab.host.process import host_packages

_LOWEST_INHERITED = 64
"""Inherited file descriptors get at least this number. The lower ones stay free for the programs: dash(1) accepts only
one digit after `>&`, and mmdebstrap passes its own pipes to it."""
_TAIL = 4000
_LONGEST = 1 << 20
"""The largest length of a line for `on_line`, in bytes; a longer line is passed in pieces."""


def emulator(arch: str) -> str:
    """Return the name of the QEMU program for an architecture (`uname -m`)."""
    return f"qemu-system-{arch}"


@dataclass(frozen=True, slots=True)
class Completed:
    """The exit code of a program, and its output on both streams, in order."""

    argv: tuple[str, ...]
    code: int
    output: str


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """One program that has ended, for people who want to see which programs kmlab runs."""

    command: str
    """The command line, ready to paste into a shell."""
    seconds: float
    code: int | None
    """The exit code; None if the program did not end in time."""
    ok: bool
    """Whether the caller accepts the exit code."""


_observer: Callable[[ProgramRun], None] | None = None
"""Module-level, because programs are run in rooms that no event sink reaches."""


def observe_programs(observer: Callable[[ProgramRun], None] | None) -> None:
    """Call `observer` each time that a program started by `run` has ended, in any thread; None stops that."""
    global _observer  # noqa: PLW0603 - the one hook of the process
    _observer = observer


def shell_line(
    argv: Sequence[str],
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: Path | None = None,
) -> str:
    """Return a command as one types it into a shell."""
    place = f"cd {shlex.quote(str(cwd))} && " if cwd else ""
    variables = ["env", *(f"{name}={value}" for name, value in environment.items())] if environment else []
    source = f" < {shlex.quote(str(stdin))}" if stdin else ""
    return f"{place}{shlex.join([*variables, *argv])}{source}"


def find(program: str) -> str:
    """Find a program's path. Raise LabError, with the package to install, if it is not installed."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise LabError(f"{program} is not installed", host_packages.install_hint(program))
    return path


_running: set[subprocess.Popen[bytes]] = set()
_cancelling = threading.Event()


@contextlib.contextmanager
def cancelling() -> Iterator[None]:
    """Prevent all threads from starting programs during the block: `check_cancelled` raises."""
    _cancelling.set()
    try:
        yield
    finally:
        _cancelling.clear()


def check_cancelled() -> None:
    """Raise KeyboardInterrupt in a thread that still works while the command is cancelled."""
    if _cancelling.is_set():
        raise KeyboardInterrupt


def end_all() -> None:
    """Send SIGTERM to every program that was started here, with its children; do not wait."""
    for process in list(_running):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


@contextlib.contextmanager
def inheritable(handle: int) -> Iterator[int]:
    """Duplicate a file descriptor to a number that no program expects to be free, for `pass_files` of `run`."""
    high = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, _LOWEST_INHERITED)
    try:
        yield high
    finally:
        os.close(high)


def run(
    argv: Sequence[str | Path],
    *,
    deadline: Deadline,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    accept: Sequence[int] = (0,),
    stdin: Path | None = None,
    pass_files: Sequence[int] = (),
    hint: str | None = None,
) -> Completed:
    """Run a program to its end. Raise CommandFailed unless the exit code is one of `accept`.

    `on_line` is called with each line of output. At the deadline, on an interrupt, or when kmlab is killed, the whole
    process group is killed. The program inherits the descriptors `pass_files`, which come from `inheritable`.
    """
    words = [str(word) for word in argv]
    words[0] = find(words[0])
    if low := [handle for handle in pass_files if handle < _LOWEST_INHERITED]:
        raise ValueError(f"file descriptors {low} are too low to be inherited: use inheritable()")
    check_cancelled()
    began = time.monotonic()
    reader, leash = os.pipe()
    with (
        open(stdin or os.devnull, "rb") as input_file,
        open(reader, "rb"),
        open(leash, "wb"),
        inheritable(reader) as leash_fd,
    ):
        process = subprocess.Popen(
            ["/bin/sh", "-c", _LEASHED.format(leash_fd), *words],
            stdin=input_file,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=None if environment is None else {**os.environ, **environment},
            pass_fds=(*pass_files, leash_fd),
            start_new_session=True,
        )
        output, code = _wait(process, deadline, on_line)
    check_cancelled()
    ok = code is not None and code in accept
    if _observer:
        _observer(ProgramRun(shell_line(words, cwd, environment, stdin), time.monotonic() - began, code, ok))
    if code is None or not ok:
        tail = output[-_TAIL:]
        raise CommandFailed([str(w) for w in argv], code, tail, hint or paths.disk_full_hint(tail))
    return Completed(tuple(words), code, output)


_LEASHED = '( {{ read -r end; kill -KILL 0; }} < /proc/self/fd/{} > /dev/null 2>&1 & ); exec "$0" "$@"'
"""Kill the program's process group when a pipe that kmlab holds open is closed. A background shell in the group waits.

So all programs end when kmlab ends, even if it is killed. PR_SET_PDEATHSIG would end the program, not its children.
"""


def _wait(
    process: subprocess.Popen[bytes], deadline: Deadline, on_line: Callable[[str], None] | None
) -> tuple[str, int | None]:
    _running.add(process)
    try:
        output, in_time = _read(process, deadline, on_line)
        return output, process.wait() if in_time else None
    finally:
        if process.poll() is None:
            _end(process)
        _running.discard(process)


def _read(
    process: subprocess.Popen[bytes], deadline: Deadline, on_line: Callable[[str], None] | None
) -> tuple[str, bool]:
    assert process.stdout is not None
    output = bytearray()
    line = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(deadline.left):
                return output.decode("utf-8", "replace"), False
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                break
            output += chunk
            if len(output) > 8 << 20:
                del output[: 4 << 20]
            if on_line:
                line += chunk
                *whole, rest = line.replace(b"\r", b"\n").split(b"\n")
                line = bytearray(rest)
                if len(line) > _LONGEST:
                    whole.append(line)
                    line = bytearray()
                for part in whole:
                    if part.strip():
                        on_line(part.decode("utf-8", "replace"))
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(deadline.left, 0.1))
    return output.decode("utf-8", "replace"), process.poll() is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
            return


class Conversation:
    """A program that answers each input line with one line. It ends with the `with` block."""

    def __init__(self, argv: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        check_cancelled()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self._pending = b""
        _running.add(self._process)

    def ask(self, line: str, deadline: Deadline) -> str:
        """Send `line` and return the answer; return an empty text if the program ended or the deadline passed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        return self.listen(deadline)

    def listen(self, deadline: Deadline) -> str:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        while b"\n" not in self._pending:
            ready, _, _ = select.select([handle], [], [], deadline.left)
            chunk = os.read(handle, 1 << 20) if ready else b""
            if not chunk:
                return ""
            self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        return line.decode("utf-8", "replace")

    def last_words(self) -> str:
        """Return the last line that the program wrote to stderr."""
        self._log.seek(0)
        lines = self._log.read()[-_TAIL:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        if self._process.poll() is None:
            _end(self._process)
        _running.discard(self._process)
        self._process.stdout.close()
        self._log.close()


def become(argv: Sequence[str | Path]) -> NoReturn:
    """Replace this process by a program that uses the user's terminal."""
    words = [str(word) for word in argv]
    os.execv(find(words[0]), words)


def interactive(argv: Sequence[str | Path], *, handles_interrupt: bool = False) -> int:
    """Run a program on the user's terminal and return its exit code.

    `handles_interrupt` leaves Ctrl-C to the program, as debuggers need it.
    """
    words = [str(word) for word in argv]
    words[0] = find(words[0])
    if not handles_interrupt:
        return subprocess.call(words)
    # A handler and not SIG_IGN, which the program would inherit.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.call(words)
    finally:
        signal.signal(signal.SIGINT, before)
