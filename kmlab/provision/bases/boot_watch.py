"""Wait for a booting guest: as long as it makes progress, and not by a fixed time.

An emulated kernel with all its checks may take ten minutes on a busy host, and a kernel that hangs never ends. The
console and the time that QEMU has computed tell them apart.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import BootStuck, GuestUnreachable
from kmlab.common.events import Deadline, Stage
from kmlab.host import Host
from kmlab.host.channel.ssh import Shell
from kmlab.host.hypervisor import hypervisor
from kmlab.host.process import command
from kmlab.provision.bases.base import Base
from kmlab.provision.plan.artifact import (
    last_line,
    read_console,
    require_disk_space,
    require_firmware_output,
    require_no_panic,
    require_trust,
)
from kmlab.provision.plan.plan import Plan
from kmlab.virt import firmware

LONGEST_BOOT = 900.0
"""Seconds for a boot that makes progress; three times as many for an emulated guest."""
_SILENT_WORK = 80.0
"""Seconds that QEMU computes while the console is silent; three times as many for an emulated guest. A stock kernel
needs 10 of them, a kernel with KASAN and lockdep 88 from one line to the next."""
_SILENT_IDLE = 240.0
"""Seconds without a line on the console and without work. systemd waits up to 120 seconds for the network."""
_ATTEMPT = 2.0
"""Seconds to wait for an answer of sshd; a stock guest takes one."""
_ATTEMPT_SHARE = 0.15
"""The same as a share of the boot so far. A slow guest works as much for a connection that is given up."""


class ProgressWatch:
    """Notice that a boot makes no progress any more. `work` returns the seconds of processor time it has taken."""

    def __init__(self, work: Callable[[], float], patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._work, self._clock, self._silent_work = work, clock, _SILENT_WORK * patience
        self._length = -1
        self._since = self._work_then = 0.0

    def is_stuck(self, console: str) -> bool:
        """Return whether the boot is stuck, given all that the console has printed so far."""
        now, work = self._clock(), self._work()
        if len(console) != self._length:
            self._length, self._since, self._work_then = len(console), now, work
            return False
        return work - self._work_then > self._silent_work or now - self._since > max(
            _SILENT_IDLE, 4 * (work - self._work_then)
        )


@contextlib.contextmanager
def shell_while_booting(
    host: Host, plan: Plan, base: Base, folder: Path, port: int, stage: Stage, deadline: Deadline
) -> Iterator[Shell]:
    """Wait for the guest's sshd and yield a shell. Until then, report the console's last line."""
    progress = ProgressWatch(lambda: _work_of(hypervisor.processes(folder)), plan.patience)
    with contextlib.ExitStack() as stack:
        shell = None
        firmware_deadline = Deadline(firmware.FIRST_LINE_SECONDS * plan.patience)
        while shell is None:
            command.check_cancelled()
            console = read_console(folder / "console.log")
            require_no_panic(plan, console)
            require_trust(plan, console)
            require_disk_space(plan)
            if firmware_deadline.passed:
                require_firmware_output(plan, plan.firmware, console)
            last = last_line(console)
            stage.progress(detail=last)
            try:
                # The slower a guest boots, the longer its sshd takes for an answer.
                patience = max(_ATTEMPT, stage.seconds * _ATTEMPT_SHARE)
                attempt = host.shell(port, base.host_key, paths.identity_key(), deadline.within(patience))
                shell = stack.enter_context(attempt)
            except GuestUnreachable as error:
                hint = f"the console log: {paths.failed_boot()}"
                if deadline.passed:
                    message = f"did not answer on ssh within {deadline.seconds:.0f} s"
                    raise GuestUnreachable(_about(plan, message, last), hint) from error
                if progress.is_stuck(console):
                    message = f"stopped to make progress after {stage.seconds:.0f} s, and does not answer on ssh"
                    raise BootStuck(_about(plan, message, last), hint) from error
        yield shell


def _about(plan: Plan, what: str, last: str) -> str:
    return f"guest '{plan.spec.name}' {what}; last console line: '{last}'"


def _work_of(pids: Sequence[int]) -> float:
    return sum(map(hypervisor.processor_seconds, pids))
