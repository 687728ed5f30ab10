"""A boot is given up when it makes no progress, and not after a fixed time."""

from __future__ import annotations

import pytest

from kmlab.common.errors import BootPanicked, BootStuck, LabError
from kmlab.common.events import Note, silent
from kmlab.host.hypervisor.hypervisor import processor_seconds
from kmlab.provision.bases.boot_watch import ProgressWatch
from kmlab.provision.plan.artifact import boot_twice


class Boot:
    """A boot whose time and work are set by hand."""

    def __init__(self, patience: float = 1.0) -> None:
        self.now = self.work = 0.0
        self.console = ""
        self.watch = ProgressWatch(lambda: self.work, patience, lambda: self.now)
        assert not self.watch.is_stuck(self.console)

    def step(self, seconds: float, work: float, line: str = "") -> bool:
        self.now, self.work, self.console = self.now + seconds, self.work + work, self.console + line
        return self.watch.is_stuck(self.console)


def test_a_boot_that_prints_is_never_stuck() -> None:
    boot = Boot()
    assert not any(boot.step(200, 75, f"line {n}\n") for n in range(100))


def test_a_processor_that_spins_in_silence_is_stuck_and_an_emulated_one_gets_three_times_as_long() -> None:
    native, emulated = Boot(1.0), Boot(3.0)
    assert [native.step(30, 30) for _ in range(4)] == [False, False, True, True]
    assert [emulated.step(30, 30) for _ in range(9)] == [False] * 8 + [True]


def test_a_guest_that_idles_in_silence_is_stuck_after_what_systemd_waits_for_the_network() -> None:
    boot = Boot()
    assert not boot.step(125, 1)
    assert not boot.step(100, 1)
    assert boot.step(30, 0)


def test_a_busy_host_gives_the_guest_little_of_its_processors_and_that_is_no_hang() -> None:
    boot = Boot()
    # Ten programs for each processor: 600 s on the clock are 60 s of work.
    assert not any(boot.step(100, 30) for _ in range(2))


@pytest.mark.parametrize("error", [BootStuck("hangs"), BootPanicked("panicked")])
def test_a_boot_that_hangs_or_panics_is_tried_once_more(error: LabError) -> None:
    failures: list[LabError] = [error]
    said: list[str] = []

    def boot() -> str:
        if failures:
            raise failures.pop()
        return "up"

    def report(event: object) -> None:
        if isinstance(event, Note):
            said.append(event.text)

    assert boot_twice(boot, "debian", report) == "up"
    assert said == [f"{error.message}: booting once more"]


def test_the_second_boot_that_hangs_is_an_error() -> None:
    def boot() -> str:
        raise BootStuck("hangs again")

    with pytest.raises(BootStuck, match="hangs again"):
        boot_twice(boot, "debian", silent)


def test_the_work_of_a_process_is_read_and_that_of_a_process_that_is_gone_is_zero() -> None:
    import os

    assert processor_seconds(os.getpid()) > 0
    assert processor_seconds(2**22 + 1) == 0.0
