"""Hold what every step of a run gets: the guest, the module, the console, and the time limits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from kmlab.common.events import Deadline, EventSink, Stage
from kmlab.config.lab import Lab, Module
from kmlab.config.run_options import Options
from kmlab.diagnosis.console import ConsoleMonitor
from kmlab.diagnosis.ring_buffer import RingBuffer
from kmlab.host import Host
from kmlab.kernel.hang.watchdogs import ladder
from kmlab.provision.guest import Guest, slowness
from kmlab.run.build.request import BuildRequest
from kmlab.run.build.sandbox_build import SandboxBuild
from kmlab.run.build.source_folder import folder_in_guest
from kmlab.run.context.guest_commands import CommandLimits
from kmlab.run.context.results import StepResult

if TYPE_CHECKING:
    from kmlab.kernel.signing.load_check import GuestKeyring
    from kmlab.provision.plan.lab_key import Signer

R = TypeVar("R", bound=StepResult)
_BUILD_PATIENCE = 300.0
_EXERCISE_PATIENCE = 300.0
"""Seconds for the user's own program. A load or an unload has the time of the slowest watchdog."""
_MARK_PATIENCE = 2.5
"""Seconds for a mark to come from the kernel's log to the console."""
STATE_PATIENCE = 10.0
"""Seconds for a guest to report its kernel's state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """One module and one guest, during a run."""

    host: Host
    lab: Lab
    guest: Guest
    module: Module
    options: Options
    events: EventSink
    console: ConsoleMonitor
    ring: RingBuffer
    request: BuildRequest
    sandbox_build: SandboxBuild
    signer: Signer | None
    began: float
    """The start of the run, by the monotonic clock."""

    @property
    def source(self) -> Path:
        """The module's folder on the host."""
        return self.request.tree.folder

    @property
    def folder(self) -> PurePosixPath:
        """The module's folder in the guest."""
        return self.request.folder

    @property
    def top(self) -> PurePosixPath:
        """The folder in the guest that the build's paths start from: the module's, or one above it."""
        return folder_in_guest(self.module.name)

    @property
    def usable(self) -> bool:
        """Return whether waiting for the guest makes sense: the console has not reported its end."""
        return not self.console.over.is_set()

    @property
    def step_patience(self) -> float:
        """Seconds for a load or an unload."""
        return self._timeout or float(ladder(self.guest.record.accel, nested=self.guest.record.nested).silence)

    @property
    def exercise_patience(self) -> float:
        """Seconds for the exercise."""
        return self._timeout or _EXERCISE_PATIENCE * self._slowness

    @property
    def build_patience(self) -> float:
        """Seconds for make."""
        return build_patience(self.options, self.module, self.guest.record.accel)

    def deadline(self, seconds: float) -> Deadline:
        """Return a deadline after `seconds`, or later in an emulated guest."""
        return Deadline(seconds * self._slowness)

    def limits(self, patience: float) -> CommandLimits:
        """Return what limits one command of a step, with a new mark for the kernel's log at its end."""
        deadline = HangAwareDeadline(patience, self.console)
        return CommandLimits(deadline, self.console.over, self.console.new_mark())

    def wait_for_mark(self, mark: str) -> None:
        """Wait until a mark has come to the console. If it does not come, the console is deaf from then on."""
        self.console.wait_for(mark, self.deadline(_MARK_PATIENCE))

    def keyring(self) -> GuestKeyring | None:
        """Return the guest's keys as they were when it was started; None without Secure Boot."""
        from kmlab.provision.plan.lab_key import keyring_of

        return keyring_of(self.guest.files, self.guest.record.name)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[StepTimer]:
        """Time a step and report its begin and its end."""
        with Stage(self.events, self.guest.record.name, f"{name} {self.module.name}") as stage:
            timer = StepTimer(name, stage, time.monotonic() - self.began)
            yield timer
        timer.seconds = time.monotonic() - self.began - timer.began

    @property
    def _timeout(self) -> float | None:
        return self.options.timeout or self.module.timeout

    @property
    def _slowness(self) -> float:
        return 2.0 if self.guest.record.accel == "tcg" else 1.0


class StepTimer:
    """One running step; `result` turns it into a value afterwards."""

    def __init__(self, name: str, stage: Stage, began: float) -> None:
        self.name, self.stage, self.began = name, stage, began
        self.seconds = 0.0

    def result(self, kind: type[R], **facts: Any) -> R:
        """Return the step's result; `facts` are the fields that `kind` has beyond the times."""
        stage = self.stage
        return kind(self.name, stage.outcome, self.seconds, stage.detail, self.began, **facts)


class HangAwareDeadline(Deadline):
    """A step's deadline that also passes once the kernel has reported that the step will not end."""

    __slots__ = ("_console",)

    def __init__(self, seconds: float, console: ConsoleMonitor) -> None:
        super().__init__(seconds)
        self._console = console

    @property
    def passed(self) -> bool:
        return super().passed or self._console.doomed


def build_patience(options: Options, module: Module, accel: str) -> float:
    """Return the seconds that make may take."""
    return max(options.timeout or module.timeout or 0, _BUILD_PATIENCE * slowness(accel))
