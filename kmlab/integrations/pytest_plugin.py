"""Give pytest the fixtures of a lab: `kmlab_lab`, `guest` and `kmlab_run` (docs: the pytest page).

pytest imports this file in every run where kmlab is installed, so it imports kmlab's own code only in its fixtures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest

if TYPE_CHECKING:
    from kmlab.api import Event, LabGuest, LabSession, Params, RunResult
    from kmlab.host import Host

_TARGET = "kmlab_target"
"""The fixture on which all others that use a guest depend."""
_LONGEST_NAME = 31
"""Characters of a guest's name, which is part of the paths of sockets."""
_WAIT = 24 * 3600.0
"""Seconds that a worker waits for its turn: the other workers' tests may take long."""


class KmlabRun(Protocol):
    """The fixture `kmlab_run`: run a module in the test's guest, and fail the test if it is not as expected."""

    def __call__(
        self,
        module: str | Path,
        *,
        params: Params | None = None,
        exercise: str | None = None,
        expect: str | None = None,
        fresh: bool = False,
        keep: bool = False,
        timeout: float | None = None,
        check: bool = True,
    ) -> RunResult:
        """Run the module, and return its result; with `check`, raise RunFailed if the result is not as expected."""


class Target(NamedTuple):
    """The guest that the mark asks for; None means the default."""

    guest: str | None = None
    kernel: str | None = None

    def __str__(self) -> str:
        return "@".join(filter(None, (self.guest, self.kernel))) or "default"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("kmlab").addoption(
        "--kmlab-lab", metavar="FILE", help="Use this lab.yaml; default: the one in the root folder, or above it."
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "kmlab(kernels=[…], guests=[…]): run the test in each of these guests, with each of these kernels."
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with the mark `kmlab` once for each guest and kernel that the mark names."""
    mark = metafunc.definition.get_closest_marker("kmlab")
    if mark is None or _TARGET not in metafunc.fixturenames:
        return
    unknown = sorted({*mark.kwargs} - {"kernels", "guests"})
    if mark.args or unknown:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: the mark kmlab takes only kernels=[…] and guests=[…]")
    guests, kernels = mark.kwargs.get("guests") or [None], mark.kwargs.get("kernels") or [None]
    targets = [Target(guest, kernel) for guest in guests for kernel in kernels]
    metafunc.parametrize(_TARGET, targets, indirect=True, ids=[str(target) for target in targets])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """With pytest-xdist, let no more tests at once use guests than the host can hold."""
    worker = _Worker.of(item.config)
    if worker is None or _TARGET not in getattr(item, "fixturenames", ()):
        return (yield)
    with worker.turn():
        return (yield)


@pytest.fixture(scope="session")
def kmlab_host() -> Host:
    """Build what the tests reach this machine with: programs and libvirt. Override it to use something else."""
    from kmlab import api

    return api.build_host()


@pytest.fixture(scope="session")
def kmlab_lab(pytestconfig: pytest.Config, kmlab_host: Host) -> LabSession:
    """Open the lab of `--kmlab-lab`, or of pytest's root folder; without a lab.yaml, a lab of defaults."""
    from kmlab import api

    place = pytestconfig.getoption("--kmlab-lab") or pytestconfig.rootpath
    return api.open_lab(place, report=_log, host=kmlab_host)


@pytest.fixture(scope="session")
def kmlab_target(request: pytest.FixtureRequest) -> Target:
    """Return the guest that the mark `kmlab` asks for."""
    target: Target = getattr(request, "param", Target())
    return target


@pytest.fixture(scope="session")
def _kmlab_guests(request: pytest.FixtureRequest, kmlab_lab: LabSession) -> Iterator[dict[str, LabGuest]]:
    """Collect the guests that this session uses; stop those that exist only for it at its end."""
    used: dict[str, LabGuest] = {}
    yield used
    for each in used.values():
        if each.name not in kmlab_lab.lab.guests:
            each.stop()


@pytest.fixture(scope="session")
def guest(
    request: pytest.FixtureRequest,
    kmlab_lab: LabSession,
    kmlab_target: Target,
    _kmlab_guests: dict[str, LabGuest],
) -> LabGuest:
    """Return the test's guest, which all tests of the session share. kmlab restores it if a run left it dirty."""
    name = kmlab_target.guest or kmlab_lab.lab.default[0]
    found = kmlab_lab.guest(f"{name}@{kmlab_target.kernel}" if kmlab_target.kernel else name)
    worker = _Worker.of(request.config)
    if worker is not None:
        found = worker.guest(found)
    return _kmlab_guests.setdefault(found.name, found)


@pytest.fixture
def kmlab_run(request: pytest.FixtureRequest, guest: LabGuest) -> KmlabRun:
    """Return a function that runs a module in the test's guest; see `KmlabRun`."""

    def run(module: str | Path, *, check: bool = True, **options: Any) -> RunResult:
        __tracebackhide__ = True
        from kmlab import api

        result = guest.run(_place(guest.session, request.path.parent, module), **options)
        if not result.ok and not check:
            request.node.add_report_section("call", "kmlab", api.verdict(result))
        if not result.ok and check:
            raise api.RunFailed(result)
        return result

    return run


def _place(lab: LabSession, beside: Path, module: str | Path) -> Path | str:
    """Return the module's folder: beside the test, or below the lab's folder; or the name of an entry of lab.yaml."""
    for folder in (beside, lab.lab.folder):
        if (folder / module).is_dir():
            return folder / module
    return module


def _log(event: Event) -> None:
    """Write progress to Python's log, which pytest shows for failed tests, or at once with `--log-cli-level=INFO`."""
    import logging

    from kmlab.common.events import Finished, Note, Started, printable

    logger = logging.getLogger("kmlab")
    if isinstance(event, Note):
        logger.info("%s: %s", event.subject, printable(event.text))
    elif isinstance(event, Started):
        logger.info("%s: %s", event.subject, printable(event.what))
    elif isinstance(event, Finished):
        detail = f" ({printable(event.detail)})" if event.detail else ""
        logger.info("%s: %s: %s, %.1f s%s", event.subject, printable(event.what), event.outcome, event.seconds, detail)


# --- pytest-xdist --------------------------------------------------------------------------------------------------


class _Worker(NamedTuple):
    """One worker of pytest-xdist. It has guests of its own, named after it."""

    number: int
    workers: int
    lab: str
    """Where the lab is found."""

    @classmethod
    def of(cls, config: pytest.Config) -> _Worker | None:
        """Return this process's worker; None without pytest-xdist, and in its controller."""
        about: dict[str, Any] | None = getattr(config, "workerinput", None)
        if about is None:
            return None
        number = int(str(about["workerid"]).removeprefix("gw"))
        return cls(number, int(about["workercount"]), str(config.getoption("--kmlab-lab") or config.rootpath))

    def guest(self, guest: LabGuest) -> LabGuest:
        """Return the guest of the same kind that belongs to this worker."""
        ending = f"-gw{_place_of(self).number}"
        return dataclasses.replace(guest, spec=dataclasses.replace(guest.spec, name=_named(guest.name, ending)))

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold this worker's place while a test runs."""
        from kmlab.common.events import Deadline
        from kmlab.host.process import locks

        with locks.held(_place_of(self).lock, "pytest", _log, Deadline(_WAIT)):
            yield


class _WorkersPlace(NamedTuple):
    """A guest that the host has room for. Several workers share one if there are more workers than places."""

    number: int
    lock: Path


@functools.cache
def _place_of(worker: _Worker) -> _WorkersPlace:
    from kmlab import api
    from kmlab.common import paths
    from kmlab.host.hypervisor import capacity
    from kmlab.provision import lifecycle

    lab = api.read_lab(worker.lab)
    largest = max(spec.memory for spec in lab.guests.values())
    places = capacity.measured(paths.state_home()).side_by_side([largest] * worker.workers)
    number = worker.number % places
    return _WorkersPlace(number, lifecycle.lab_files(lab).root / f"pytest-{number}.lock")


def _named(guest: str, ending: str) -> str:
    """Return a guest's name with an ending; a digest keeps a name distinct that is too long for it."""
    room = _LONGEST_NAME - len(ending)
    if len(guest) <= room:
        return guest + ending
    digest = hashlib.sha256(guest.encode()).hexdigest()[:4]
    return f"{guest[: room - 5]}_{digest}{ending}"
