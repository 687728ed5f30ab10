"""Run work in several guests in parallel, and in each guest one job after the other.

A worker is a thread that waits for programs and guests. Ctrl-C ends those first, so that no worker waits any more, and
then the workers.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from kmlab.common import paths
from kmlab.common.errors import Cancelled, KmlabError, LabError, unexpected
from kmlab.common.events import EventSink, Note
from kmlab.config.kernel_flavours import with_debug_kernel
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
MayContinue = Callable[[], bool]
"""Returns whether to start the next piece of work."""
_CHECK_INTERVAL = 0.2
"""Seconds between two checks of the main thread. Python runs signal handlers only there."""
_MOST_FAILED_STARTS = 2
"""After this many modules in a row whose guest did not start, the rest do not try."""


class Job(NamedTuple):
    """One planned run: a module in a guest."""

    spec: GuestSpec
    module: Module


def jobs(
    lab: Lab,
    modules: Sequence[Module],
    guest_names: Sequence[str],
    matrix: Sequence[str] = (),
    *,
    debug_kernel: bool = False,
) -> list[Job]:
    """Return modules times guests, each once: the named guests, or the module's, or the lab's; or their matrix.

    With `debug_kernel`, each guest's twin with the debug kernel of its series stands for it.
    """
    planned: dict[tuple[str, str], Job] = {}
    for module in modules:
        names = list(guest_names or module.guests or lab.default)
        specs = lab.columns(names, matrix) if matrix else list(map(lab.guest, names))
        for spec in (with_debug_kernel(lab, each) for each in specs) if debug_kernel else specs:
            planned[spec.name, module.name] = Job(spec, module)
    return list(planned.values())


def run_all(
    host: Host,
    lab: Lab,
    planned: Sequence[Job],
    options: run.Options,
    events: EventSink,
    *,
    limit: int | None = None,
    on_result: Callable[[RunResult], None] = lambda result: None,
    cancel: threading.Event | None = None,
) -> list[RunResult]:
    """Run every job; return the results in the order of the jobs. Setting `cancel` ends them as Ctrl-C does."""
    specs = {job.spec.name: job.spec for job in planned}
    options = dataclasses.replace(options, siblings=len(planned))
    results: dict[int, RunResult] = {}
    lock = threading.Lock()
    builds = BuildCache()

    def row(spec: GuestSpec, may_continue: MayContinue) -> None:
        failed_starts: list[RunResult] = []
        for number, job in enumerate(planned):
            if job.spec.name != spec.name:
                continue
            if not may_continue():
                return
            if len(failed_starts) < _MOST_FAILED_STARTS:
                result = run.run(host, lab, spec, job.module, options, events, builds)
                never_up = result.outcome == "error" and not result.steps
                failed_starts = [*failed_starts, result] if never_up else []
            else:
                result = run.not_tried(lab, spec, job.module, failed_starts[-1])
            with lock:
                results[number] = result
                on_result(result)

    run_in_parallel(host, lab, list(specs.values()), row, events, limit=limit, keep=options.keep, cancel=cancel)
    return [results[number] for number in range(len(planned))]


def run_one(
    host: Host, lab: Lab, job: Job, options: run.Options, events: EventSink, *, cancel: threading.Event | None = None
) -> RunResult:
    """Run one job, and leave its guest up. Setting `cancel` ends it as Ctrl-C does."""
    results: list[RunResult] = []

    def row(spec: GuestSpec, may_continue: MayContinue) -> None:
        results.append(run.run(host, lab, spec, job.module, options, events))

    run_in_parallel(host, lab, [job.spec], row, events, keep=True, cancel=cancel)
    return results[0]


def map_guests(
    host: Host,
    lab: Lab,
    specs: Sequence[GuestSpec],
    work: Callable[[GuestSpec], T],
    events: EventSink,
) -> list[T]:
    """Call `work` for each guest; return the results in the guests' order. Raise an error after all have been tried."""
    results: dict[str, T] = {}

    def one(spec: GuestSpec, may_continue: MayContinue) -> None:
        results[spec.name] = work(spec)

    run_in_parallel(host, lab, specs, one, events, keep=True)
    return [results[spec.name] for spec in specs]


def run_in_parallel(
    host: Host,
    lab: Lab,
    specs: Sequence[GuestSpec],
    work: Callable[[GuestSpec, MayContinue], None],
    events: EventSink,
    *,
    limit: int | None = None,
    keep: bool = False,
    cancel: threading.Event | None = None,
) -> None:
    """Do `work` with every guest: as many at once as the host's cores, memory and disk allow, or `limit`.

    Raise an error of one guest when all are done; an error in lab.yaml, or in kmlab itself, as soon as the running
    pieces of work have ended. Setting `cancel` stops all as Ctrl-C does, and raises Cancelled. Guests made only for
    this work stop at its end, unless `keep`; if the host cannot hold all guests together, every guest stops.
    """
    lifecycle.check_kernels(host, lab, specs, events)
    capacity_now = capacity.measured(paths.state_home())
    memories = [spec.memory for spec in specs]
    count = min(limit or len(specs), len(specs), capacity_now.side_by_side(memories))
    room = capacity_now.holds(memories)
    if len(specs) > 1:
        which = f"{count} of {len(specs)} guests" if count < len(specs) else f"{count} guests"
        stops = "" if room or keep else "; each stops when it is done"
        events(Note(lab.name, f"{which} side by side: {capacity_now}{stops}"))

    def whole(spec: GuestSpec, may_continue: MayContinue) -> None:
        temporary = spec.name not in lab.guests and read_record(lifecycle.lab_files(lab).guest(spec.name)) is None
        try:
            work(spec, may_continue)
        finally:
            if not keep and (temporary or not room):
                lifecycle.take_down(host, lab, spec.name, events)

    if len(specs) == 1 and cancel is None:
        whole(specs[0], lambda: True)
    else:
        _Workers(lab, specs, whole, events).finish(count, cancel)


class _Workers:
    """Threads that take one guest after the other."""

    def __init__(
        self, lab: Lab, specs: Sequence[GuestSpec], work: Callable[[GuestSpec, MayContinue], None], events: EventSink
    ) -> None:
        self.lab, self.specs, self.work, self.events = lab, specs, work, events
        self._waiting = list(specs)
        self._taken: list[GuestSpec] = []
        self._failed: dict[str, KmlabError] = {}
        self._lock = threading.Lock()
        self._stop = False
        self._busy: set[int] = set()
        """Threads that have not ended. Thread.join is wrong about that if Ctrl-C interrupts it (bpo-45274)."""
        self._idle = threading.Event()

    def finish(self, count: int, cancel: threading.Event | None = None) -> None:
        self._busy = set(range(count))
        threads = [
            threading.Thread(target=self._thread_main, args=(n,), name=f"guests-{n}", daemon=True) for n in range(count)
        ]
        try:
            for thread in threads:
                thread.start()
            while not self._idle.wait(_CHECK_INTERVAL):
                if cancel is not None and cancel.is_set():
                    raise Cancelled("cancelled")
        except BaseException:
            self._end({number for number, thread in enumerate(threads) if thread.ident is None})
            raise
        failed = [self._failed[spec.name] for spec in self.specs if spec.name in self._failed]
        for error in sorted(failed, key=lambda error: isinstance(error, LabError)):
            raise error

    def _end(self, never_started: set[int]) -> None:
        """Stop the programs and guests that the workers wait for, until the workers have ended."""
        self._stop = True
        self._ended(never_started)
        files = lifecycle.lab_files(self.lab)
        with command.cancelling():
            while not self._idle.wait(_CHECK_INTERVAL):
                command.end_all()
                for spec in list(self._taken):
                    hypervisor.kill(files.guest(spec.name).root)

    def _ended(self, threads: set[int]) -> None:
        with self._lock:
            self._busy -= threads
            if not self._busy:
                self._idle.set()

    def _thread_main(self, number: int) -> None:
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
            error = unexpected(problem, f"{spec.name} failed")
            error.__cause__ = None if error is problem else problem
            with self._lock:
                self._failed[spec.name] = error
                # A failure in one guest does not concern the others; a mistake in lab.yaml does.
                self._stop = self._stop or not (isinstance(error, LabError) and isinstance(problem, Exception))
            if isinstance(error, LabError):
                self.events(Note(spec.name, error.message))
