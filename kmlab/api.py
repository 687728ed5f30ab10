"""Use a lab from Python: open it, run modules in its guests, and get their verdicts.

    from kmlab import api

    lab = api.open_lab("lab.yaml")
    result = lab.run("examples/hello", params={"whom": "world"})
    print(result.outcome, result.ok)

The commands of kmlab, its pytest plugin and its server for agents use the same functions (docs: the pytest page).
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from kmlab.common.errors import Cancelled, ConfigError, KmlabError, LabError
from kmlab.common.events import Deadline, Event, EventSink, printable, silent
from kmlab.config import default_lab
from kmlab.config.lab import Expect, GuestSpec, Lab, Module, Outcome, Param, find_lab, load_lab
from kmlab.config.run_options import Options
from kmlab.config.yaml.reader import nearest, quoted
from kmlab.host import Host
from kmlab.host.process import command
from kmlab.kernel.module.modinfo import format_params
from kmlab.provision import lifecycle
from kmlab.provision.guest import Guest
from kmlab.report.verdict_lines import verdict_lines
from kmlab.run import parallel
from kmlab.run.parallel import Job
from kmlab.run.result import RunResult

__all__ = [
    "Answer",
    "Cancelled",
    "ConfigError",
    "Event",
    "EventSink",
    "Job",
    "KmlabError",
    "LabError",
    "LabGuest",
    "LabSession",
    "Options",
    "Params",
    "RunFailed",
    "RunResult",
    "build_host",
    "open_lab",
    "read_lab",
    "verdict",
]


Params = Mapping[str, str | int | bool | Sequence[str | int | bool]]
"""Parameters of a module, by name. A sequence is an array parameter."""


class RunFailed(AssertionError):
    """A run was not as expected. Its text is the verdict, with the guilty source lines."""

    def __init__(self, result: RunResult) -> None:
        super().__init__(verdict(result, first=True))
        self.result = result


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command in a guest said."""

    code: int | None
    """Its exit code; None if it did not end in time."""
    output: str
    errors: str

    @property
    def ok(self) -> bool:
        return self.code == 0


def build_host() -> Host:
    """Build the Host that runs real programs and talks to libvirt."""
    from kmlab.host import real_host

    return real_host()


def open_lab(place: Path | str | None = None, *, report: EventSink = silent, host: Host | None = None) -> LabSession:
    """Open the lab of a lab.yaml, or of a folder: its lab.yaml, or the nearest one above it.

    `place` defaults to the current folder. A folder without lab.yaml has a lab of defaults, as `kmlab run` has.
    `report` is called with each step of long work. Raise ConfigError for a mistake in lab.yaml.
    """
    return LabSession(read_lab(place), host or build_host(), report)


def read_lab(place: Path | str | None = None) -> Lab:
    """Return what the lab.yaml says that `open_lab` opens."""
    start = Path(place) if place is not None else Path.cwd()
    if not start.is_dir():
        return load_lab(start)
    file = find_lab(start)
    return load_lab(file) if file else default_lab.default_lab(start, default_lab.GuestSettings())


def verdict(result: RunResult, *, first: bool = False) -> str:
    """Return what `kmlab run` prints: findings with source lines, and the verdict last or `first`. Safe to print."""
    return "\n".join(printable(line) for line in verdict_lines(result, verdict_first=first))


@dataclass(frozen=True, slots=True)
class LabSession:
    """An open lab. Its guests start at first use, and stay up for the next one, as those of the commands do."""

    lab: Lab
    """What lab.yaml says."""
    host: Host = field(repr=False)
    report: EventSink = field(default=silent, repr=False)

    def guest(self, name: str | None = None) -> LabGuest:
        """Return a guest by its name; `debian@6.12` is the guest debian with another kernel.

        Without a name, it is the lab's default guest. Raise ConfigError if the lab does not have it.
        """
        return LabGuest(self, self.lab.guest(name or self.lab.default[0]))

    def guest_for(self, module: Module, name: str | None = None) -> LabGuest:
        """Return the guest of that name; without a name, the first guest of the module's entry, or the default."""
        return self.guest(name or (module.guests or self.lab.default)[0])

    def module(self, module: Path | str) -> Module:
        """Return the entry of lab.yaml with that name or folder, or a plain module for any other folder."""
        return self.lab.modules.get(str(module)) or self.lab.module_for(Path(module))

    def run(
        self,
        module: Path | str,
        *,
        guest: str | None = None,
        params: Params | None = None,
        exercise: str | None = None,
        expect: str | None = None,
        fresh: bool = False,
        keep: bool = False,
        timeout: float | None = None,
    ) -> RunResult:
        """Run a module in one guest, as `kmlab run` does, and return its result, whatever the module did.

        Without `guest`, it is the first one of the module's entry, or else the lab's default. Raise ConfigError for bad
        input. A failure of the lab is the outcome `error`.
        """
        return self.guest_for(self.module(module), guest).run(
            module, params=params, exercise=exercise, expect=expect, fresh=fresh, keep=keep, timeout=timeout
        )

    def plan(
        self, modules: Sequence[Module], guests: Sequence[str] = (), kernels: Sequence[str] = ()
    ) -> list[parallel.Job]:
        """Return the runs of these modules: in the named guests, or in each module's, or in the lab's default guests.

        `kernels` multiplies each guest by kernels.
        """
        return parallel.jobs(self.lab, modules, guests, kernels)

    def run_all(
        self,
        planned: Sequence[parallel.Job],
        options: Options,
        *,
        limit: int | None = None,
        on_result: Callable[[RunResult], None] = lambda result: None,
        cancel: threading.Event | None = None,
    ) -> list[RunResult]:
        """Run all of a plan, several guests side by side; return the results in the order of the plan.

        `on_result` gets each result as it arrives. Setting `cancel` stops everything, and raises Cancelled.
        """
        return parallel.run_all(
            self.host, self.lab, planned, options, self.report, limit=limit, on_result=on_result, cancel=cancel
        )


@dataclass(frozen=True, slots=True)
class LabGuest:
    """A guest of a lab. Each call starts it if it is stopped, and restores it if an earlier run left it dirty."""

    session: LabSession
    spec: GuestSpec

    @property
    def name(self) -> str:
        return self.spec.name

    def run(
        self,
        module: Path | str,
        *,
        params: Params | None = None,
        exercise: str | None = None,
        expect: str | None = None,
        fresh: bool = False,
        keep: bool = False,
        timeout: float | None = None,
        cancel: threading.Event | None = None,
    ) -> RunResult:
        """Run a module in this guest; see `LabSession.run`. Setting `cancel` ends the run, and raises Cancelled."""
        session = self.session
        chosen = self.session.module(module)
        if expect is not None:
            chosen = dataclasses.replace(chosen, expect=_expectation(expect))
        options = Options(params=_parameters(params or {}), exercise=exercise, fresh=fresh, keep=keep, timeout=timeout)
        job = Job(self.spec, chosen)
        return parallel.run_one(session.host, session.lab, job, options, session.report, cancel=cancel)

    def execute(self, line: str | Sequence[str], *, timeout: float = 60.0) -> Answer:
        """Run a program, or a line for the guest's shell, as root in the guest."""
        argv = line if isinstance(line, str) else list(line)
        with self._session() as guest:
            answer = guest.run(argv, Deadline(timeout))
        return Answer(answer.code, answer.text, answer.error_text)

    def gdb(
        self, commands: Sequence[str], *, module: Path | str | None = None, timeout: float = 600.0
    ) -> command.Completed:
        """Attach gdb to the guest in any state, and run commands of gdb; return its exit code and output.

        With `module`, build and load it first, and stop before its init function runs.
        """
        from kmlab.debugger import session as debugger

        host, lab, report = self.session.host, self.session.lab, self.session.report
        if module is None:
            opened = debugger.attach(host, lab, self.spec, None, report)
        else:
            build = Options(steps=("build",))
            opened = debugger.at_load(host, lab, self.spec, self.session.module(module), build, None, report)
        with opened as ready:
            return debugger.run_batch(ready, commands, Deadline(timeout))

    def restore(self) -> None:
        """Restore the guest to its clean state, in any state."""
        with self._session(fresh=True):
            pass

    def stop(self) -> bool:
        """Stop the guest; return whether it was running."""
        return lifecycle.take_down(self.session.host, self.session.lab, self.name, self.session.report)

    def _session(self, *, fresh: bool = False) -> AbstractContextManager[Guest]:
        session = self.session
        return lifecycle.guest_session(
            session.host, session.lab, self.spec, session.report, fresh=fresh, allow_kept_modules=not fresh
        )


def _expectation(outcome: str) -> Expect:
    known = {word: word for word in get_args(Outcome)}
    if outcome not in known:
        raise ConfigError(f"unknown outcome {quoted(outcome)}", nearest(outcome, known, "outcomes"))
    return Expect(outcome=(known[outcome],))


def _parameters(params: Params) -> dict[str, Param]:
    """Return parameters as lab.yaml gives them. Raise ConfigError for a name or a value that a module cannot have."""
    checked = {name: v if isinstance(v, str | int | bool) else tuple(v) for name, v in params.items()}
    format_params(checked)
    return checked
