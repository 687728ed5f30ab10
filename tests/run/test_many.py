"""Guests side by side, with fake doors: what goes wrong in one is no matter of the others, and ^C ends them all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kmlab.cli.output.progress import Activities, Lines
from kmlab.common import paths
from kmlab.common.errors import ConfigError, HypervisorError, LabError
from kmlab.common.events import Deadline, Event, Finished, Note, Progress, Started, silent
from kmlab.config.lab import Lab, load_lab
from kmlab.host.hypervisor import capacity, hypervisor
from kmlab.host.hypervisor.capacity import Capacity
from kmlab.host.process import command
from kmlab.provision import cache, lifecycle
from kmlab.provision.guest import read_record
from kmlab.run import parallel, run
from kmlab.run.result import RunResult
from kmlab.testing import Act, FakeModule, World

GIB = 1 << 30
LAB = """\
name: fake
default: [one, two]
guests:
  one: {image: debian-12, memory: 256M}
  two: {image: debian-12, memory: 256M, cpus: 1}
  odd: {image: debian-12, memory: 256M, packages: [gdb]}
  other-odd: {image: debian-12, memory: 256M, packages: [bpftrace]}
keep_runs: 2
build: guest
modules:
  hello: {source: hello}
  other: {source: other, guests: [two]}
  third: {source: third}
"""


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "measured", lambda folder: Capacity(2, 16 * GIB, 100 * GIB))


@pytest.fixture
def lab(xdg: Path) -> Lab:
    for name in ("hello", "other", "third"):
        folder = xdg / "lab" / name
        folder.mkdir(parents=True)
        (folder / "Kbuild").write_text(f"obj-m := {name}.o\n")
    (xdg / "lab" / "lab.yaml").write_text(LAB)
    return load_lab(xdg / "lab" / "lab.yaml")


Go = Callable[..., list[RunResult]]


@pytest.fixture
def go(lab: Lab, world: World, events: list[Event]) -> Go:
    """Run modules in guests, side by side; `on` hears each event in the thread that it comes from."""

    def story(
        modules: str, guests: str = "one two", *, on: Callable[[Event], None] = silent, **options: object
    ) -> list[RunResult]:
        def hear(event: Event) -> None:
            events.append(event)
            on(event)

        wanted = parallel.jobs(lab, [lab.modules[name] for name in modules.split()], guests.split())
        return parallel.run_all(world.host, lab, wanted, run.Options(**options), hear)  # type: ignore[arg-type]

    return story


def root(lab: Lab, guest: str) -> Path:
    return lifecycle.lab_files(lab).guest(guest).root


def names(results: list[RunResult]) -> list[tuple[str, str, str]]:
    return [(result.module, result.guest, result.outcome) for result in results]


def begins(event: Event, guest: str, what: str) -> bool:
    return isinstance(event, Started) and event.subject == guest and event.what.startswith(what)


def test_two_guests_are_at_work_at_the_same_time(go: Go) -> None:
    both = threading.Barrier(2)

    def on(event: Event) -> None:
        if isinstance(event, Started) and event.what == "load hello":
            both.wait(60)

    assert names(go("hello", on=on)) == [("hello", "one", "pass"), ("hello", "two", "pass")]


def test_results_come_in_the_order_of_the_jobs_whoever_ends_first(go: Go, lab: Lab, world: World) -> None:
    second_done = threading.Event()

    def on(event: Event) -> None:
        if isinstance(event, Finished) and (event.subject, event.what) == ("two", "unload third"):
            second_done.set()
        if begins(event, "one", "load hello"):
            second_done.wait(60)

    results = go("hello third", on=on)
    assert second_done.is_set()
    assert names(results) == [
        *(("hello", "one", "pass"), ("hello", "two", "pass")),
        *(("third", "one", "pass"), ("third", "two", "pass")),
    ]


def test_each_guest_has_a_port_and_a_console_of_its_own(go: Go, lab: Lab, world: World) -> None:
    world.modules["hello"] = FakeModule(name="hello", load=Act(kernel=("Hello, world.",)))
    results = go("hello")
    records = [read_record(lifecycle.lab_files(lab).guest(name)) for name in ("one", "two")]
    assert len({record.port for record in records if record}) == 2
    assert [[record.text for record in result.log] for result in results] == [["Hello, world."], ["Hello, world."]]


def test_jobs_are_modules_times_the_guests_asked_for_or_their_own_or_the_labs(lab: Lab) -> None:
    modules = list(lab.modules.values())

    def of(*asked: str, matrix: tuple[str, ...] = ()) -> list[str]:
        return [f"{j.module.name} {j.spec.name}" for j in parallel.jobs(lab, modules, asked, matrix)]

    assert of() == ["hello one", "hello two", "other two", "third one", "third two"]
    assert of("one", "one") == ["hello one", "other one", "third one"]
    assert of(matrix=("default", "6.12"))[:5] == [
        "hello one",
        "hello two",
        "hello one@6.12",
        "hello two@6.12",
        "other two",
    ]
    assert of("one", matrix=("6.12", "odd"))[:2] == ["hello one@6.12", "hello odd"]


def test_a_guest_that_dies_is_lost_alone(go: Go, lab: Lab, world: World) -> None:
    world.modules["hello"] = FakeModule(name="hello")

    def on(event: Event) -> None:
        if begins(event, "one", "load hello"):
            hypervisor.kill(root(lab, "one"))

    results = go("hello third", on=on)
    assert names(results) == [
        *(("hello", "one", "lost"), ("hello", "two", "pass")),
        *(("third", "one", "pass"), ("third", "two", "pass")),
    ]


def test_a_build_that_fails_is_one_cell_of_many(go: Go, world: World) -> None:
    world.modules["hello"] = FakeModule(name="hello", build=Act(code=2, error="hello.c:1:1: error: no\n"))
    assert [outcome for *_, outcome in names(go("hello third"))] == ["build-failed"] * 2 + ["pass"] * 2


def test_a_bake_that_fails_costs_its_own_guest_alone_and_is_not_tried_for_ever(
    go: Go, world: World, events: list[Event]
) -> None:
    go("hello")
    world.refusals["start"] = HypervisorError("no room")
    world.asked.clear()
    results = go("hello other third", "one odd")
    assert [r.outcome for r in results if r.guest == "one"] == ["pass"] * 3
    wrong = [r for r in results if r.guest == "odd"]
    assert [r.outcome for r in wrong] == ["error"] * 3
    assert world.asked.count("start") == 2
    assert [r.title for r in wrong] == ["no room"] * 3
    assert wrong[2].reason == "not tried, because the guest could not be started before: no room"
    assert all(e.subject == "odd" for e in events if isinstance(e, Finished) and e.outcome == "failed")


def test_a_mistake_in_lab_yaml_stops_the_rest_and_is_what_is_said(go: Go, world: World, lab: Lab) -> None:
    wrong = dataclasses.replace(lab.guests["two"], image="debain-12")
    there = dataclasses.replace(lab, guests={**lab.guests, "two": wrong})
    jobs = parallel.jobs(there, [lab.modules["hello"]] * 1, ["one", "two"])
    with pytest.raises(ConfigError, match="debain-12"):
        parallel.run_all(world.host, there, jobs, run.Options(), silent)


def test_what_is_done_with_each_guest_is_told_in_order_and_the_first_error_last(lab: Lab, world: World) -> None:
    specs = [lab.guest(name) for name in ("one", "two", "odd")]
    assert parallel.map_guests(world.host, lab, specs, lambda spec: spec.name.upper(), silent) == ["ONE", "TWO", "ODD"]
    heard: list[Event] = []
    done: list[str] = []

    def work(spec: object) -> None:
        name = str(getattr(spec, "name", ""))
        if name != "odd":
            raise LabError(f"{name} is broken")
        done.append(name)

    with pytest.raises(LabError, match="one is broken"):
        parallel.map_guests(world.host, lab, specs, work, heard.append)
    assert done == ["odd"]
    assert Note("two", "two is broken") in heard


def test_a_guest_made_for_a_matrix_stops_at_its_end_and_the_labs_own_stay(
    lab: Lab, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "Package: linux-{kind}-6.12.1-0-fake-amd64\nVersion: 6.12.1-1\nArchitecture: amd64\n\n"
    world.indexes = {"stable": "".join(package.format(kind=kind) for kind in ("image", "headers"))}

    def run_in(matrix: tuple[str, ...], options: run.Options = run.Options()) -> set[str]:
        jobs = parallel.jobs(lab, [lab.modules["hello"]], ["one"], matrix)
        results = parallel.run_all(world.host, lab, jobs, options, silent)
        assert [r.outcome for r in results] == ["pass"] * len(jobs), [r.reason for r in results]
        files = lifecycle.lab_files(lab)
        return {name for name in files.guests() if hypervisor.processes(files.guest(name).root)}

    assert run_in(("default", "6.12")) == {"one"}
    assert run_in(("6.12",), run.Options(keep=True)) == {"one", "one@6.12"}
    assert cache.guest_names(lab) == [*lab.guests, "one@6.12"], "status and down --all have it while it runs"
    assert run_in(("6.12",)) == {"one", "one@6.12"}, "it was up before"


def test_interrupted_while_guests_work_all_end_and_the_next_command_works(
    go: Go, lab: Lab, world: World, events: list[Event]
) -> None:
    both = threading.Barrier(2)
    for name in ("hello", "third"):
        world.modules[name] = FakeModule(name=name, exercise=Act(ends="hangs"))

    def on(event: Event) -> None:
        if isinstance(event, Started) and event.what == "exercise hello":
            number = both.wait(60)
            if number == 0:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        go("hello third", on=on, exercise="sleep 1000")
    assert not [t for t in threading.enumerate() if t.name.startswith("guests-") and t.is_alive()]
    assert not [name for name in ("one", "two") if hypervisor.processes(root(lab, name))]
    assert not [event for event in events if isinstance(event, Started) and event.what.endswith("third")]
    world.modules.clear()
    assert [outcome for *_, outcome in names(go("hello"))] == ["pass"] * 2
    assert not lifecycle.destroy_lab(world.host, lab, ["odd"], all_state=False, report=silent)
    assert lifecycle.destroy_lab(world.host, lab, [], all_state=False, report=silent) == ["one", "two"]


def test_interrupted_while_a_base_is_baked_nothing_half_made_stays(go: Go, lab: Lab, world: World) -> None:
    both = threading.Barrier(2)

    def on(event: Event) -> None:
        if isinstance(event, Started) and event.what.startswith("baking"):
            if both.wait(60) == 0:
                signal.raise_signal(signal.SIGINT)
            while True:  # as the bake's own waiting does
                command.check_cancelled()
                time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        go("hello", "odd other-odd", on=on)
    assert [path for path in paths.work().iterdir() if path.is_dir()] == []
    assert [outcome for *_, outcome in names(go("hello", "odd other-odd"))] == ["pass"] * 2


def test_while_the_command_is_ended_no_program_starts() -> None:
    with command.cancelling(), pytest.raises(KeyboardInterrupt):
        command.run(["true"], deadline=Deadline(5))
    assert command.run(["true"], deadline=Deadline(5)).code == 0


def test_the_runs_of_one_command_keep_their_evidence_to_its_end(go: Go, lab: Lab) -> None:
    results = go("hello third")
    assert lab.keep_runs == 2
    assert all(result.directory and (result.directory / "result.json").exists() for result in results)
    go("hello", "one")
    assert len(list(lifecycle.lab_files(lab).runs.iterdir())) == 2


# --- what the host has ---------------------------------------------------------------------------------------------


def test_as_many_guests_as_cores_as_long_as_memory_and_disk_last() -> None:
    ample = Capacity(4, 64 * GIB, 500 * GIB)
    assert ample.side_by_side([GIB] * 8) == 4
    assert ample.side_by_side([GIB] * 3) == 3
    assert dataclasses.replace(ample, memory=4 * GIB).side_by_side([GIB] * 8) == 2
    assert dataclasses.replace(ample, disk=7 * GIB).side_by_side([GIB] * 8) == 3
    assert dataclasses.replace(ample, memory=0, disk=0).side_by_side([GIB] * 8) == 1, "one must do, or say why not"


def test_the_largest_guests_count_as_any_of_them_may_be_up_together() -> None:
    assert Capacity(4, 6 * GIB, 500 * GIB).side_by_side([GIB // 4, GIB // 4, 4 * GIB]) == 2


def test_what_the_host_has_is_told_with_how_many_guests_that_is(go: Go, lab: Lab, events: list[Event]) -> None:
    go("hello", "one two odd")
    told = "2 of 3 guests side by side: 2 cores, 16.0 GiB of memory and 100.0 GiB of disk free"
    assert events[0] == Note("fake", told)


def test_guests_that_the_host_cannot_hold_together_make_room_for_each_other(
    go: Go, lab: Lab, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "measured", lambda folder: Capacity(8, 2 * GIB, 100 * GIB))
    go("hello", "one two odd")
    assert isinstance(events[0], Note) and events[0].text.endswith("; each stops when it is done")
    assert not any(hypervisor.processes(root(lab, name)) for name in ("one", "two", "odd"))


# --- progress ------------------------------------------------------------------------------------------------------


def test_each_guest_at_work_has_one_line_in_a_place_that_stays() -> None:
    now = [0.0]
    board = Activities(lambda: now[0])
    for event in (
        Started("trixie@backports", "baking the base"),
        Started("debian", "restoring the guest"),
        Started("debian", "build hello"),
        Progress("debian", "build hello", detail="CC [M]  hello.o\x1b[2J"),
    ):
        assert board.hear(event) == []
    now[0] = 7.0
    assert board.lines() == [
        "debian           build hello 7 s  CC [M]  hello.o\\x1b[2J",
        "trixie@backports baking the base 7 s",
    ]
    (stays,) = board.hear(Finished("debian", "build hello", 7.0))
    assert stays.split() == ["ok", "debian", "build", "hello", "7.0", "s"]
    assert board.lines()[0] == "debian           restoring the guest 7 s"


def test_without_a_terminal_a_long_wait_is_told_now_and_then_with_its_guest() -> None:
    now, said = [0.0], list[str]()
    lines = Lines(said.append, lambda: now[0])
    for second in range(0, 40, 2):
        now[0] = float(second)
        if second == 0:
            lines.hear(Started("debian", "baking the base"))
            lines.hear(Started("odd", "baking the base"))
        lines.hear(Progress("debian", "baking the base", detail=f"line {second}"))
    assert said == [
        "  …   debian     baking the base 16 s  line 16",
        "  …   debian     baking the base 32 s  line 32",
    ]


def test_at_a_terminal_each_guest_has_a_line_of_its_own_and_what_is_done_stays() -> None:
    program = (
        "import time\n"
        "from kmlab.cli.output.progress import reporting\n"
        "from kmlab.common.events import Finished, Progress, Started\n"
        "with reporting() as report:\n"
        "    report(Started('newer', 'baking the base'))\n"
        "    report(Started('debian', 'build hello'))\n"
        "    report(Progress('newer', 'baking the base', detail='unpacking'))\n"
        "    time.sleep(1)\n"
        "    report(Finished('debian', 'build hello', 1.0))\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal that nobody has open any more
            while chunk := os.read(ours, 65536):
                shown += chunk
    os.close(ours)
    assert process.returncode == 0
    frames = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]|\r", b"", shown).decode()
    assert re.search(r"debian     build hello 0 s\n\s*newer      baking the base 0 s  unpacking", frames), frames
    assert re.search(r"  ok  debian     build hello +1.0 s", frames)


def test_with_a_debug_kernel_the_twin_of_each_guest_runs_the_module(lab: Lab) -> None:
    old = dataclasses.replace(lab.guest("one"), name="old", kernel="6.12")
    lab = dataclasses.replace(lab, guests={**lab.guests, "old": old})
    modules = [lab.module_for(lab.folder / "hello")]
    planned = parallel.jobs(lab, modules, ["one", "old", "two@kcsan"], debug_kernel=True)
    assert [job.spec.kernel for job in planned] == ["debug", "6.12:debug", "kcsan"]
    assert [job.spec.name.partition("@")[0] for job in planned] == ["one", "old", "two"]
