"""Provide a running guest: its shell, its files and its record. It is the only live object of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
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

MODULES_FOLDER = PurePosixPath("/var/lib/kmlab/modules")
"""The parent folder of module folders in a guest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRecord:
    """The record of a started guest: guest.json in its folder."""

    name: str
    uri: str
    domain: str
    arch: str
    release: str
    """The kernel's release (`uname -r`)."""
    accel: str
    why: str
    """The reason for the accelerator."""
    nested: bool = False
    """Whether KVM runs in a virtual machine."""
    firmware: str
    """The firmware, and the reason for it."""
    base: str
    checkpoint: str
    port: int | None
    """The port of its sshd on 127.0.0.1; None without a network."""
    host_key: str
    tty: str | None
    """The host's pty of its login console."""
    pid: int | None
    started: float
    """Seconds since the epoch."""
    network: str = "host"
    """What it can connect to; guests of earlier versions could connect wherever the host can."""
    forward: Sequence[str] = ()
    """What lab.yaml said about ports, as HOST:GUEST."""
    forwarded: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The host's port, on 127.0.0.1, of each forwarded port of the guest."""
    devices: Sequence[str] = ()
    """What lab.yaml said about devices."""
    taint: int = 0
    """The kernel's taint flags after the restore."""
    out_of_tree: Sequence[str] = ()
    """The out-of-tree modules that were loaded after the restore."""
    ran: Sequence[str] = ()
    """The modules that ran in it since the restore, each once, oldest first."""
    state: str = "clean"
    """clean: as restored, or equivalent. busy: a run is in progress, or was killed. kept: modules were left loaded on
    purpose. dirty: a module damaged it.
    """
    reason: str = ""
    """The reason why it is dirty."""


def read_record(files: paths.GuestFiles) -> GuestRecord | None:
    """Read the record of a started guest. Return None if there is none, or if another version of kmlab wrote it."""
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
        """Set the clock and reseed the random numbers after a restore, which brings back old ones.

        Then record the kernel's state, to detect changes later. Raise GuestUnreachable if the guest does not answer.
        """
        answer = self.shell.wake(time.time(), secrets.token_bytes(64), deadline)
        if not answer.ok:
            raise GuestUnreachable(f"guest '{self.record.name}' did not resume after the restore (code {answer.code})")
        kernel_state = self.read_kernel_state(deadline)
        self.record = dataclasses.replace(
            self.record, taint=kernel_state.taint, out_of_tree=tuple(sorted(kernel_state.out_of_tree))
        )
        write_record(self.files, self.record)

    def read_kernel_state(
        self, deadline: Deadline, *, mark: str = "", abandon: threading.Event | None = None
    ) -> KernelState:
        """Read the kernel's state; first write `mark` to its log. Setting `abandon` ends the wait at once."""
        kernel_state = parse_kernel_state(
            self.shell.read_files(state_files(), deadline, mark=mark, abandon=abandon).text
        )
        if kernel_state is None:
            raise GuestUnreachable("could not read the guest's kernel taint flags")
        return kernel_state

    def begin_run(self, module: str | None) -> None:
        """Record on the host that a run is in progress, and which module it will load."""
        if module is not None:
            self.record = dataclasses.replace(self.record, ran=tuple(dict.fromkeys((*self.record.ran, module))))
        self.mark("busy")

    def mark(self, state: str, reason: str = "") -> None:
        """Record the guest's state on the host, which decides whether it can be reused."""
        self.record = dataclasses.replace(self.record, state=state, reason=reason)
        with contextlib.suppress(OSError):
            write_record(self.files, self.record)


def slowness(accel: str) -> float:
    """Return the factor for time limits: an emulated guest is several times slower."""
    return 4.0 if accel == "tcg" else 1.0


def describe(record: GuestRecord) -> dict[str, object]:
    return json.loads(json.dumps(dataclasses.asdict(record)))  # type: ignore[no-any-return]
