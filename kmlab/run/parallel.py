"""Many guests at once: each guest's work in a row, the guests side by side up to what the host has.

A worker is a thread: what takes long is done by programs and guests, which it waits for. ^C ends those first, so that
no worker waits any more, and then the workers.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from kmlab.common import paths
from kmlab.common.errors import KmlabError, LabError, unexpected
from kmlab.common.events import EventSink, Note
from kmlab.config.lab import GuestSpec, Lab, Module
from kmlab.host import Host
from kmlab.host.hypervisor import capacity, hypervisor
from kmlab.host.process import command
from kmlab.provision import lifecycle
from kmlab.provision.guest import read_record
from kmlab.run import run
from kmlab.run.build.sandbox_build import BuildCache
from kmlab.run.result import RunResult

T = TypeVar("T")
GoOn = Callable[[], bool]
"""Whether to take up the next piece of work."""
_TICK = 0.2
"""Seconds between two looks of the main thread, in which alone a signal is heard."""
_ENOUGH = 2
"""So many modules in a row find that a guest cannot be brought up; then the rest do not try."""


class Job(NamedTuple):
    """One run that is wanted."""

    spec: GuestSpec
    module: Module


def jobs(lab: Lab, modules: Sequence[Module], asked: Sequence[str], matrix: Sequence[str] = ()) -> list[Job]:
    """Modules times guests, each once. Guests: those asked for, or the module's own, or the lab's; or their matrix."""
    found: dict[tuple[str, str], Job] = {}
    for module in modules:
        names = list(asked or module.guests or lab.default)
        for spec in lab.columns(names, matrix) if matrix else map(lab.guest, names):
            found[spec.name, module.name] = Job(spec, module)
    return list(found.values())


def run_all(
    host: Host,
    lab: Lab,
    wanted: Sequence[Job],
    options: run.Options,
    report: EventSink,
    *,
    most: int | None = None,
    on_result: Callable[[RunResult], None] = lambda result: None,
) -> list[RunResult]:
    """Every job's result, in the order of the jobs whatever the order in which they end."""
    specs = {job.spec.name: job.spec for job in wanted}
    options = dataclasses.replace(options, siblings=len(wanted))
    results: dict[int, RunResult] = {}
    told = threading.Lock()
    builds = BuildCache()

    def row(spec: GuestSpec, go_on: GoOn) -> None:
        out_of_reach: list[RunResult] = []
        for number, job in enumerate(wanted):
            if job.spec.name != spec.name:
                continue
            if not go_on():
                return
            if len(out_of_reach) < _ENOUGH:
                result = run.run(host, lab, spec, job.module, options, report, builds)
                never_up = result.outcome == "error" and not result.steps
                out_of_reach = [*out_of_reach, result] if never_up else []
            else:
                result = run.not_tried(lab, spec, job.module, out_of_reach[-1])
            with told:
                results[number] = result
                on_result(result)

    side_by_side(host, lab, list(specs.values()), row, report, most=most, keep=options.keep)
    return [results[number] for number in range(len(wanted))]


def each(
    host: Host,
    lab: Lab,
    specs: Sequence[GuestSpec],
    work: Callable[[GuestSpec], T],
    report: EventSink,
) -> list[T]:
    """What `work` gives for each guest, in their order; an error when all have been tried."""
    found: dict[str, T] = {}

    def one(spec: GuestSpec, go_on: GoOn) -> None:
        found[spec.name] = work(spec)

    side_by_side(host, lab, specs, one, report, keep=True)
    return [found[spec.name] for spec in specs]


def side_by_side(
    host: Host,
    lab: Lab,
    specs: Sequence[GuestSpec],
    work: Callable[[GuestSpec, GoOn], None],
    report: EventSink,
    *,
    most: int | None = None,
    keep: bool = False,
) -> None:
    """Do `work` with every guest, as many at once as the host has cores, memory and disk for, or `most`.

    An error of one guest is raised when all are done; one of configuration, or of kmlab itself, when those under way
    have ended their present piece of work. Guests that were only made for this stop at their end, unless `keep`; all
    do where the host cannot hold them together.
    """
    has = capacity.measured(paths.state_home())
    memories = [spec.memory for spec in specs]
    count = min(most or len(specs), len(specs), has.side_by_side(memories))
    room = has.holds(memories)
    if len(specs) > 1:
        which = f"{count} of {len(specs)} guests" if count < len(specs) else f"{count} guests"
        stops = "" if room or keep else "; each stops when it is done"
        report(Note(lab.name, f"{which} side by side: {has}{stops}"))

    def whole(spec: GuestSpec, go_on: GoOn) -> None:
        passing = spec.name not in lab.guests and read_record(lifecycle.lab_files(lab).guest(spec.name)) is None
        try:
            work(spec, go_on)
        finally:
            if not keep and (passing or not room):
                lifecycle.take_down(host, lab, spec.name, report)

    if len(specs) == 1:
        whole(specs[0], lambda: True)
    else:
        _Workers(lab, specs, whole, report).finish(count)


class _Workers:
    """Threads that take one guest after the other."""

    def __init__(
        self, lab: Lab, specs: Sequence[GuestSpec], work: Callable[[GuestSpec, GoOn], None], report: EventSink
    ) -> None:
        self.lab, self.specs, self.work, self.report = lab, specs, work, report
        self._waiting = list(specs)
        self._taken: list[GuestSpec] = []
        self._failed: dict[str, KmlabError] = {}
        self._lock = threading.Lock()
        self._stop = False
        self._busy: set[int] = set()
        """Threads that have not ended. Thread.join says of one that it has when ^C cuts the join short (bpo-45274)."""
        self._idle = threading.Event()

    def finish(self, count: int) -> None:
        self._busy = set(range(count))
        threads = [threading.Thread(target=self._go, args=(n,), name=f"guests-{n}", daemon=True) for n in range(count)]
        try:
            for thread in threads:
                thread.start()
            while not self._idle.wait(_TICK):
                pass
        except BaseException:
            self._end({number for number, thread in enumerate(threads) if thread.ident is None})
            raise
        failed = [self._failed[spec.name] for spec in self.specs if spec.name in self._failed]
        for error in sorted(failed, key=lambda error: isinstance(error, LabError)):
            raise error

    def _end(self, never_started: set[int]) -> None:
        """End what the workers wait for, until they have ended too."""
        self._stop = True
        self._ended(never_started)
        files = lifecycle.lab_files(self.lab)
        with command.cancelling():
            while not self._idle.wait(_TICK):
                command.end_all()
                for spec in list(self._taken):
                    hypervisor.kill(files.guest(spec.name).root)

    def _ended(self, threads: set[int]) -> None:
        with self._lock:
            self._busy -= threads
            if not self._busy:
                self._idle.set()

    def _go(self, number: int) -> None:
        try:
            while (spec := self._next()) is not None:
                self._row(spec)
        finally:
            self._ended({number})

    def _next(self) -> GuestSpec | None:
        with self._lock:
            if self._stop or not self._waiting:
                return None
            self._taken.append(self._waiting.pop(0))
            return self._taken[-1]

    def _row(self, spec: GuestSpec) -> None:
        try:
            self.work(spec, lambda: not self._stop)
        except BaseException as problem:
            error = unexpected(problem, f"{spec.name} could not go on")
            error.__cause__ = None if error is problem else problem
            with self._lock:
                self._failed[spec.name] = error
                # What goes wrong in one guest is no matter of the others; a mistake in lab.yaml is.
                self._stop = self._stop or not (isinstance(error, LabError) and isinstance(problem, Exception))
            if isinstance(error, LabError):
                self.report(Note(spec.name, error.message))
