"""A guest that is up: its shell, its console and what is known of it. The only live thing in the story."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kmlab.common import paths
from kmlab.common.errors import GuestUnreachable
from kmlab.common.events import Deadline
from kmlab.kernel.module.proc_modules import KernelState, parse_kernel_state, state_files

if TYPE_CHECKING:
    import threading

    from kmlab.host.channel.ssh import Answer, Shell

WORKSHOP = PurePosixPath("/var/lib/kmlab/modules")
"""Where modules' folders lie in a guest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRecord:
    """What is known of a started guest: guest.json in its folder."""

    name: str
    uri: str
    domain: str
    arch: str
    release: str
    """Of its kernel, as `uname -r`."""
    accel: str
    why: str
    """Why that accelerator."""
    firmware: str
    """Which firmware, and why."""
    base: str
    checkpoint: str
    port: int
    host_key: str
    tty: str | None
    """The host's pty of its login console."""
    pid: int | None
    started: float
    """Seconds since the epoch."""
    taint: int = 0
    """Of its kernel, as restored."""
    out_of_tree: Sequence[str] = ()
    """The modules from outside the kernel's tree that it had loaded, as restored."""
    ran: Sequence[str] = ()
    """The modules that were run in it since it was restored, each once, oldest first."""
    state: str = "clean"
    """clean: as restored, or as good as. busy: a run is on, or was killed. kept: modules were left loaded on purpose.
    dirty: a module did something to it.
    """
    reason: str = ""
    """Why it is dirty."""


def read_record(files: paths.GuestFiles) -> GuestRecord | None:
    """The record of a guest that was started, or None. Written by another version of kmlab counts as none."""
    value = paths.read_json(files.record)
    try:
        return GuestRecord(**value) if isinstance(value, dict) else None
    except TypeError:
        return None


def write_record(files: paths.GuestFiles, record: GuestRecord) -> None:
    paths.write_json(files.record, dataclasses.asdict(record))


class Guest:
    """One running guest, with an open shell."""

    def __init__(self, files: paths.GuestFiles, record: GuestRecord, shell: Shell) -> None:
        self.files = files
        self.record = record
        self.shell = shell

    def run(
        self,
        argv: list[str] | str,
        deadline: Deadline,
        *,
        data: bytes = b"",
        on_output: Callable[[bytes], None] | None = None,
        abandon: threading.Event | None = None,
    ) -> Answer:
        """Run a program, or a line for the guest's shell, as root."""
        line = argv if isinstance(argv, str) else shlex.join(argv)
        return self.shell.run(line, deadline, data=data, on_output=on_output, abandon=abandon)

    def wake(self, deadline: Deadline) -> None:
        """After a restore: the clock has stood still, and the random numbers are those of every other guest.

        Then remember what its kernel has, to see later whether it is as it was. GuestUnreachable if it does not answer.
        """
        answer = self.shell.wake(time.time(), secrets.token_bytes(64), deadline)
        if not answer.ok:
            raise GuestUnreachable(f"guest '{self.record.name}' did not wake up (code {answer.code})")
        now = self.read_kernel_state(deadline)
        self.record = dataclasses.replace(self.record, taint=now.taint, out_of_tree=tuple(sorted(now.out_of_tree)))
        write_record(self.files, self.record)

    def read_kernel_state(
        self, deadline: Deadline, *, mark: str = "", abandon: threading.Event | None = None
    ) -> KernelState:
        """What its kernel has now; first put `mark` into its log. Setting `abandon` gives up waiting at once."""
        seen = parse_kernel_state(self.shell.read_files(state_files(), deadline, mark=mark, abandon=abandon).text)
        if seen is None:
            raise GuestUnreachable("could not read the guest's kernel taint flags")
        return seen

    def begin_run(self, module: str | None) -> None:
        """Remember on the host that a run is on, and which module is about to be loaded."""
        if module is not None:
            self.record = dataclasses.replace(self.record, ran=tuple(dict.fromkeys((*self.record.ran, module))))
        self.mark("busy")

    def mark(self, state: str, reason: str = "") -> None:
        """Remember on the host whether the guest may be used again as it is."""
        self.record = dataclasses.replace(self.record, state=state, reason=reason)
        with contextlib.suppress(OSError):
            write_record(self.files, self.record)


def slowness(accel: str) -> float:
    """By what patience is multiplied: an emulated guest takes several times as long for everything."""
    return 4.0 if accel == "tcg" else 1.0


def describe(record: GuestRecord) -> dict[str, object]:
    return json.loads(json.dumps(dataclasses.asdict(record)))  # type: ignore[no-any-return]
