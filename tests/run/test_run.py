"""What a run comes to, told with fake doors: each thing that a module or a guest may do."""

from __future__ import annotations

import dataclasses
import shutil
from typing import NamedTuple

import pytest

from kmlab.common.errors import HypervisorError
from kmlab.config.lab import Lab
from kmlab.host.hypervisor import hypervisor
from kmlab.kernel.log.records import parse_log
from kmlab.provision import lifecycle
from kmlab.provision.guest import read_record
from kmlab.run import run
from kmlab.testing import RELEASE, Act, World, module_image
from tests.places import TEST_DATA
from tests.story import PANIC, Go, record_of, step


class Space(NamedTuple):
    total: int
    used: int
    free: int


def test_a_module_that_does_nothing_wrong_passes(go: Go) -> None:
    result = go(load=Act(kernel=("Hello, world.",), taint=1 << 12), unload=Act(kernel=("Goodbye, world.",)))
    assert (result.outcome, result.ok, result.title, result.reason) == ("pass", True, None, None)
    assert [s.name for s in result.steps] == ["sync", "build", "load", "unload"]
    assert [r.text for r in result.log] == ["Hello, world.", "Goodbye, world."]
    assert (result.taint_before, result.taint_after) == (0, 1 << 12)
    assert result.kernel == RELEASE
    assert result.guest_survived


def test_a_build_that_fails_is_the_module_s_own_outcome(go: Go, lab: Lab, world: World) -> None:
    log = "/var/lib/kmlab/modules/hello/hello.c:3:1: error: expected ';' before 'return'\nmake: *** [hello.o] Error 1\n"
    result = go(build=Act(code=2, error=log))
    assert result.outcome == "build-failed"
    assert [(d.file, d.line, d.column) for d in result.diagnostics] == [("hello.c", 3, 1)]
    assert [s.name for s in result.steps] == ["sync", "build"]
    assert result.directory is not None
    assert (result.directory / "build.log").read_text() == log
    assert record_of(lab).state == "clean"
    assert not any("insmod" in line for line in world.lines)


def test_a_module_that_is_refused_is_load_failed_with_a_reason(go: Go, lab: Lab) -> None:
    error = "insmod: ERROR: could not insert module ./hello.ko: No such device\n"
    result = go(load=Act(code=1, error=error))
    assert (result.outcome, step(result, "load")) == ("load-failed", "failed")
    assert result.reason
    assert "unload" not in [s.name for s in result.steps]
    assert record_of(lab).state == "clean"


def test_the_process_that_holds_a_module_is_named(go: Go, world: World) -> None:
    world.holders = b"device\t512/fd/0\tcharacter special file\ta:3a\0link\t512/fd/0\t/dev/larva\0"
    world.holders += b"name\t/sys/dev/char/10:58\0argument\t512/cmdline:sleep\0argument\t512/cmdline:600\0"
    result = go(unload=Act(code=1, error="rmmod: ERROR: Module hello is in use\n"))
    assert result.outcome == "unload-failed"
    assert "process 512 (sleep 600) has /dev/larva open: end it in the guest (kill 512)" in (result.reason or "")


def stuck(name: str, pid: int, function: str) -> tuple[str, ...]:
    """One task of the kernel's answer about those that no signal reaches."""
    frames = (" __schedule+0x2f/0x20", " __mutex_lock.constprop.0+0x3a/0x500", f" {function}+0x31/0x60 [hello]")
    return (f"task:{name} state:D stack:0 pid:{pid} ppid:2 flags:0x00004000", "Call Trace:", *frames)


def test_tasks_that_wait_for_each_other_in_a_device_that_they_have_open_are_a_hang(go: Go, world: World) -> None:
    world.holders = b"".join(
        f"device\t{pid}/fd/0\tcharacter special file\ta:3a\0link\t{pid}/fd/0\t/dev/hello\0"
        f"stack\t{pid}/task/{pid}/stack:[<0>] {function}+0x31/0x60 [hello]\0comm\t{pid}/comm:{function}\0".encode()
        for pid, function in ((31, "take_a"), (32, "take_b"))
    )
    said = ("sysrq: Show Blocked State", *stuck("pump", 31, "take_a"), *stuck("sink", 32, "take_b"))
    result = go(unload=Act(code=1, error="rmmod: ERROR: Module hello is in use\n", kernel=said))
    assert (result.outcome, result.title) == ("hang", "deadlock in take_a and take_b")


@pytest.mark.parametrize("second", ["take_b", "take_a"])
def test_a_module_whose_tasks_wait_for_each_other_at_the_unload_hangs(go: Go, world: World, second: str) -> None:
    world.holders = b"".join(
        f"stack\t{pid}/task/{pid}/stack:[<0>] {function}+0x31/0x60 [hello]\0comm\t{pid}/comm:{function}\0".encode()
        for pid, function in ((31, "take_a"), (32, second))
    )
    said = ("sysrq: Show Blocked State", *stuck("pump", 31, "take_a"), *stuck("sink", 32, second))
    result = go(unload=Act(code=1, error="rmmod: ERROR: Module hello is in use\n", kernel=said))
    if second == "take_a":
        assert (result.outcome, result.crashes) == ("unload-failed", ())
        return
    assert (result.outcome, result.title) == ("hang", "deadlock in take_a and take_b")
    assert (result.reason or "").startswith(
        "pump waits for a mutex in take_a and sink waits for a mutex in take_b; hello"
    )
    assert [(section.name, section.task) for section in result.crashes[0].sections] == [("task sink", "sink")]
    assert result.directory is not None
    assert "take_b" in (result.directory / "tasks.txt").read_text()


def test_an_exercise_that_fails_is_test_failed(go: Go) -> None:
    result = go("params", exercise=Act(code=7, output="count was 4\n"), load=Act(kernel=("params: count is 3",)))
    assert result.outcome == "test-failed"
    assert result.reason == "the exercise `./check.sh` ended with 7: count was 4"
    assert result.directory is not None
    assert (result.directory / "exercise.log").read_text() == "count was 4\n"
    assert step(result, "unload") == "ok"


def test_a_line_that_was_expected_and_did_not_come_is_said(go: Go) -> None:
    result = go("params")
    assert result.outcome == "test-failed"
    assert not result.ok
    assert result.unmet == ("expected in the log: count is 3",)


def test_a_panic_while_loading_is_read_from_the_console(go: Go, lab: Lab, world: World) -> None:
    result = go(load=Act(kernel=("about to give up", *PANIC), ends="hangs"))
    assert (result.outcome, result.guest_survived) == ("panic", False)
    assert result.title == "Kernel panic: had enough"
    assert [r.text for r in result.log] == ["about to give up", *(text.removeprefix("<0>") for text in PANIC)]
    assert hypervisor.processes(lifecycle.lab_files(lab).root) == []
    assert read_record(lifecycle.lab_files(lab).guest("debian")) is None
    assert result.seconds < 20
    assert go().outcome == "pass"


def test_a_guest_that_vanishes_without_a_word_is_lost(go: Go) -> None:
    result = go(load=Act(ends="lost"))
    assert (result.outcome, step(result, "load"), result.guest_survived) == ("lost", "lost", False)
    assert go().outcome == "pass"


def test_a_step_that_does_not_end_is_a_hang(go: Go) -> None:
    result = go(load=Act(ends="hangs"), options=run.Options(timeout=0.3))
    assert (result.outcome, step(result, "load")) == ("hang", "hang")
    assert go().outcome == "pass"


def test_a_guest_that_its_hypervisor_has_no_more_is_lost_and_not_hung(go: Go, world: World) -> None:
    world.refusals["monitor info status"] = HypervisorError("libvirt could not ask QEMU: domain is not running")
    result = go(load=Act(ends="hangs"), options=run.Options(timeout=0.3))
    assert (result.outcome, step(result, "load")) == ("lost", "lost")


@pytest.mark.parametrize("how", ["stopped by QEMU", "ended by libvirt"])
def test_a_guest_that_a_full_disk_of_the_host_stopped_is_the_lab_s_error(
    how: str, go: Go, lab: Lab, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    go()
    if how == "stopped by QEMU":
        world.monitor["info status"] = "VM status: paused (io-error)\r\n"
    else:
        world.refusals["monitor info status"] = HypervisorError("libvirt could not ask QEMU: domain is not running")
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: Space(100 << 30, 100 << 30, 3 << 20))
        result = go(load=Act(ends="hangs"), options=run.Options(timeout=0.3))
    assert (result.outcome, result.ok) == ("error", False)
    files = lifecycle.lab_files(lab).guest("debian")
    assert result.title == f"{files.root}: the disk of guest 'debian' needs 64 MiB, 3 MiB are free"
    assert result.reason is not None and "XDG_STATE_HOME" in result.reason
    world.monitor.clear()
    world.refusals.clear()
    assert go().outcome == "pass"


def test_several_modules_load_in_the_order_they_depend_and_unload_in_reverse(go: Go, world: World) -> None:
    images = {"user.ko": module_image("user", depends="base"), "base.ko": module_image("base")}
    result = go(images=images)
    assert result.outcome == "pass"
    assert [(s.name, s.detail) for s in result.steps[2:]] == [
        ("load", "base"),
        ("load", "user"),
        ("unload", "user"),
        ("unload", "base"),
    ]


def test_lockdep_is_off_after_its_report_also_when_the_lab_allows_it(go: Go, lab: Lab) -> None:
    said = parse_log((TEST_DATA / "oops" / "lockdep-circular.txt").read_bytes().partition(b"pid: 602\n")[2]).records
    allowing = dataclasses.replace(lab, allow=("possible circular",))
    result = go(lab=allowing, load=Act(kernel=tuple(f"<4>{record.text}" for record in said)))
    assert (result.outcome, result.crashes) == ("pass", ())
    assert [note.partition(":")[0].startswith("lockdep is off") for note in result.notes] == [True]
    record = record_of(lab)
    assert (record.state, record.reason) == ("dirty", "lockdep turned itself off in the last run")


def test_a_module_that_is_only_loaded_is_not_exercised_and_need_not_have_logged_all(go: Go, world: World) -> None:
    options = run.Options(steps=("build", "load"), keep=True)
    result = go("params", options=options, load=Act(kernel=("params: loaded",), taint=1 << 12))
    assert (result.outcome, result.ok, tuple(result.unmet)) == ("pass", True, ())
    assert [s.name for s in result.steps] == ["sync", "build", "load"]
    assert not any("KMLAB_MODULE" in line for line in world.lines)
