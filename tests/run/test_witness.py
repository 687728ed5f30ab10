"""A pass needs a whole witness: what the console, the ring buffer, the taint and the list of modules say agrees."""

from __future__ import annotations

import pytest

from kmlab.common.events import Event
from kmlab.config.lab import Lab
from kmlab.provision import lifecycle
from kmlab.run import run
from kmlab.testing import Act, World
from tests.story import OOPS, PANIC, Go, notes, record_of, step

DIE, BAD_PAGE, WARN, UNSIGNED, USER = 1 << 7, 1 << 5, 1 << 9, 1 << 13, 1 << 6
OOT = 1 << 12


def test_an_oops_that_mutes_the_console_is_found_in_the_ring_buffer(go: Go, lab: Lab) -> None:
    result = go(load=Act(code=137, kernel=OOPS, taint=DIE | OOT, mutes=True))
    assert (result.outcome, result.crashes[0].function) == ("oops", "hello_init")
    assert record_of(lab).state == "dirty"


def test_an_oops_after_the_exercise_switched_the_console_off_is_found(go: Go, lab: Lab) -> None:
    options = run.Options(exercise="echo N > /sys/class/tty/ttyS0/console")
    result = go(options=options, exercise=Act(mutes=True), unload=Act(kernel=OOPS, taint=DIE))
    assert (result.outcome, result.crashes[0].function) == ("oops", "hello_init")
    assert record_of(lab).state == "dirty"


def test_a_console_that_falls_silent_leaves_the_guest_dirty_though_all_is_well(go: Go, lab: Lab) -> None:
    result = go(load=Act(mutes=True, kernel=("hello there",), taint=OOT))
    assert result.outcome == "pass"
    assert "hello there" in [record.text for record in result.log]
    assert (record_of(lab).state, record_of(lab).reason) == ("dirty", "its console fell silent in the last run")


def test_what_neither_console_nor_ring_buffer_has_is_no_pass(go: Go, lab: Lab) -> None:
    result = go(unload=Act(mutes=True, overwrites=True))
    assert (result.outcome, result.ok) == ("lost", False)
    assert result.reason is not None and "fell silent" in result.reason
    assert record_of(lab).state == "dirty"


def test_a_flood_that_overwrites_the_ring_buffer_is_judged_by_the_console(go: Go, lab: Lab) -> None:
    result = go(load=Act(kernel=("the first", *OOPS), overwrites=True, code=137, taint=DIE))
    assert (result.outcome, result.crashes[0].function) == ("oops", "hello_init")
    assert "the first" in [record.text for record in result.log]
    passed = go(load=Act(kernel=("a flood",) * 50, overwrites=True, taint=OOT))
    assert passed.outcome == "pass"


def test_a_guest_whose_console_fell_silent_is_restored_before_the_next_run(
    go: Go, lab: Lab, world: World, events: list[Event]
) -> None:
    go()
    (machine,) = [machine for machine in world.machines.values() if machine.runs]
    machine.heard = False
    world.asked.clear()
    assert go(load=Act(kernel=("hello again",), taint=OOT)).outcome == "pass"
    assert world.asked == ["restore"]
    assert notes(events) == ["restored, because its console had fallen silent"]
    assert len(list(lifecycle.lab_files(lab).runs.iterdir())) == 2, "the run that was given up leaves no folder"


def test_a_module_that_insmod_did_not_load_is_no_pass(go: Go, lab: Lab, world: World) -> None:
    world.replaced.add("insmod")
    result = go()
    assert (result.outcome, result.failure, step(result, "load")) == ("load-failed", "not-listed", "failed")
    assert result.reason is not None and "the kernel has not loaded it" in result.reason
    assert record_of(lab).state == "dirty"


def test_a_module_that_rmmod_did_not_unload_is_no_pass(go: Go, lab: Lab, world: World) -> None:
    world.replaced.add("rmmod")
    result = go()
    assert (result.outcome, step(result, "unload")) == ("unload-failed", "failed")
    assert result.reason is not None and "still has it loaded" in result.reason
    assert record_of(lab).state == "dirty"


def test_a_module_that_hides_itself_is_said_to(go: Go, world: World) -> None:
    world.hides.add("hello")
    result = go(unload=Act(code=1, error="rmmod: ERROR: Module hello is not currently loaded\n"))
    assert result.outcome == "unload-failed"
    assert result.reason is not None and "off the list" in result.reason


@pytest.mark.parametrize(
    ("taint", "outcome"),
    [(DIE, "oops"), (BAD_PAGE, "oops"), (WARN, "warning"), (USER, "warning"), (1 << 40, "warning")],
)
def test_a_taint_that_no_finding_explains_is_no_pass(taint: int, outcome: str, go: Go, lab: Lab) -> None:
    result = go(options=run.Options(exercise="true"), exercise=Act(taint=taint))
    assert (result.outcome, result.ok) == (outcome, False)
    assert (
        result.reason is not None and "was set in step 'exercise', and nothing in the log explains it" in result.reason
    )
    assert record_of(lab).state == "dirty"


def test_a_taint_that_says_what_was_loaded_is_a_pass(go: Go) -> None:
    assert go(load=Act(taint=OOT | UNSIGNED | 1)).outcome == "pass"


def test_an_oops_explains_its_taint_and_nothing_is_said_of_it(go: Go) -> None:
    result = go(load=Act(code=137, kernel=OOPS, taint=DIE | WARN))
    assert (result.outcome, result.title) == ("oops", "BUG: kernel NULL pointer dereference in hello_init")
    assert result.reason is None or "taint" not in result.reason


def test_what_a_program_writes_to_the_serial_port_is_no_report(go: Go) -> None:
    fake = "".join(f"[  100.5] {line.partition('>')[2]}\n" for line in OOPS)
    options = run.Options(exercise="cat fake > /dev/ttyS0")
    result = go(options=options, exercise=Act(serial=fake))
    assert (result.outcome, result.crashes) == ("pass", ())


LOCKUP = (
    "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [cat:321]",
    "CPU: 0 PID: 321 Comm: cat Tainted: G           OE      6.1.0-0-fake-amd64 #1",
    "RIP: 0010:hello_read+0x5/0x10 [hello]",
)


@pytest.mark.parametrize("report", [OOPS, LOCKUP], ids=["oops", "lockup"])
def test_a_report_on_the_serial_port_that_the_kernel_knows_nothing_of_ends_no_step(
    report: tuple[str, ...], go: Go
) -> None:
    fake = "".join(f"[  100.5] {line.rpartition('>')[2] if line[0] == '<' else line}\n" for line in report)
    options = run.Options(exercise="cat fake > /dev/ttyS0; sleep 7", timeout=7)
    result = go(options=options, exercise=Act(serial=fake, ends="hangs"))
    assert step(result, "exercise") == "hang"
    (seconds,) = [each.seconds for each in result.steps if each.name == "exercise"]
    assert seconds > 6.5, "the step has all its time"


def test_a_report_that_the_kernel_has_too_ends_the_step_early(go: Go) -> None:
    options = run.Options(exercise="cat /proc/hello", timeout=30)
    result = go(options=options, exercise=Act(kernel=tuple(f"<0>{line}" for line in LOCKUP), ends="hangs"))
    assert result.outcome == "hang"
    (seconds,) = [each.seconds for each in result.steps if each.name == "exercise"]
    assert seconds < 20


def test_a_panic_of_which_somebody_only_writes_does_not_stop_a_run(go: Go) -> None:
    fake = "".join(f"[  100.5] {line}\n" for line in PANIC)
    options = run.Options(exercise="cat fake > /dev/ttyS0")
    result = go(options=options, exercise=Act(serial=fake))
    assert (result.outcome, result.guest_survived) == ("pass", True)


def test_a_panic_that_a_module_only_prints_is_none(go: Go) -> None:
    result = go(load=Act(kernel=("<6>Kernel panic - not syncing: as they say",), taint=OOT))
    assert (result.outcome, result.guest_survived) == ("pass", True)


@pytest.mark.parametrize("taint", [DIE, WARN])
def test_a_guest_that_was_tainted_between_two_runs_is_restored(
    taint: int, go: Go, world: World, events: list[Event]
) -> None:
    go()
    (machine,) = [machine for machine in world.machines.values() if machine.runs]
    machine.taint |= taint
    assert go().outcome == "pass"
    assert any(note.startswith("restored, because its kernel is tainted: ") for note in notes(events))


def test_a_guest_with_a_module_in_it_that_nobody_kept_is_restored(go: Go, world: World, events: list[Event]) -> None:
    go()
    (machine,) = [machine for machine in world.machines.values() if machine.runs]
    machine.loaded.append("stranger")
    assert go().outcome == "pass"
    assert notes(events) == ["restored, because the module stranger is loaded in it"]


def test_a_finding_in_a_guest_that_another_module_used_is_confirmed_on_a_fresh_one(
    go: Go, world: World, events: list[Event]
) -> None:
    go()
    world.asked.clear()
    result = go("params", options=run.Options(exercise="true"), load=Act(code=137, kernel=OOPS, taint=DIE))
    assert result.outcome == "oops"
    assert world.asked == ["restore"]
    assert "oops, but hello ran in this guest before: running it again in a fresh one" in notes(events)


def test_a_finding_that_a_fresh_guest_does_not_show_is_not_the_module_s(go: Go, world: World) -> None:
    go()
    world.once = {"params": Act(code=137, kernel=OOPS, taint=DIE)}
    result = go("params", load=Act(kernel=("count is 3",), taint=OOT))
    assert (result.outcome, result.crashes) == ("pass", ())
    assert result.reason is not None
    assert "not seen on a fresh guest; suspect hello, which ran before" in result.reason


def test_a_finding_in_a_guest_of_its_own_is_not_repeated(go: Go, world: World) -> None:
    go()
    world.asked.clear()
    assert go(load=Act(code=137, kernel=OOPS, taint=DIE)).outcome == "oops"
    assert world.asked == []


def test_a_guest_in_which_nothing_ran_is_not_restored_for_a_module_that_wants_one_to_itself(
    go: Go, world: World
) -> None:
    go(options=run.Options(steps=()))
    world.asked.clear()
    go(options=run.Options(unused=True))
    go("params", options=run.Options(unused=True), load=Act(kernel=("count is 3",), taint=OOT))
    assert world.asked == ["restore"]
