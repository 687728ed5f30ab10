"""What a run makes of its guest, told with fake doors: made once, restored where it must be, entered, left behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.errors import GuestUnreachable, HypervisorError, HypervisorUnavailable, LabError
from kmlab.common.events import Deadline, Event
from kmlab.config.lab import Lab
from kmlab.host.hypervisor import hypervisor
from kmlab.host.process.command import Conversation
from kmlab.provision import lifecycle
from kmlab.provision.bases.checkpoint import read_checkpoint
from kmlab.provision.guest import write_record
from kmlab.run import run
from kmlab.testing import Act, World
from tests.story import OOPS, Go, notes, record_of


def test_image_base_and_checkpoint_are_made_once(go: Go, world: World) -> None:
    go()
    assert world.asked == ["build-image", "start", "save", "stop", "restore"]
    world.asked.clear()
    go()
    go(guest="other")
    assert world.asked == ["restore"]


def test_a_clean_guest_is_used_as_it_is(go: Go, lab: Lab, world: World, events: list[Event]) -> None:
    go()
    before = record_of(lab)
    assert before.state == "clean"
    go()
    assert record_of(lab).port == before.port
    assert notes(events) == []
    assert len([line for line in world.lines if line.startswith("tar ")]) == 1


def test_fresh_restores_a_clean_guest(go: Go, world: World) -> None:
    go()
    world.asked.clear()
    assert go(options=run.Options(fresh=True)).outcome == "pass"
    assert world.asked == ["restore"]


def test_the_files_are_sent_again_to_a_guest_that_was_restored(go: Go) -> None:
    go()
    result = go(options=run.Options(fresh=True))
    assert result.outcome == "pass"
    assert result.steps[0].detail == "2 sent, 0 removed"


def test_a_module_that_will_not_unload_leaves_the_guest_dirty(go: Go, lab: Lab) -> None:
    result = go(unload=Act(code=1, error="rmmod: ERROR: Module hello is in use\n"))
    assert result.outcome == "unload-failed"
    assert result.reason
    assert record_of(lab).state == "dirty"


def test_a_warning_leaves_the_guest_dirty(go: Go, lab: Lab) -> None:
    result = go(load=Act(taint=1 << 9))
    assert result.outcome == "warning"
    assert record_of(lab).state == "dirty"


def test_keep_leaves_the_module_loaded_and_the_guest_kept(go: Go, lab: Lab, world: World) -> None:
    result = go(options=run.Options(keep=True))
    assert result.outcome == "pass"
    assert "unload" not in [s.name for s in result.steps]
    assert (record_of(lab).state, record_of(lab).reason) == ("kept", "")


def test_an_oops_while_loading_is_found_and_the_next_run_restores_first(
    go: Go, lab: Lab, world: World, events: list[Event]
) -> None:
    result = go(load=Act(code=137, kernel=OOPS, taint=1 << 7))
    assert result.outcome == "oops"
    assert (result.crashes[0].function, result.crashes[0].module) == ("hello_init", "hello")
    assert record_of(lab).state == "dirty"
    world.asked.clear()
    assert go().outcome == "pass"
    assert world.asked == ["restore"]
    assert notes(events) == ["restored, because the last run ended in oops"]


def test_what_the_lab_cannot_do_is_the_outcome_error(go: Go, world: World) -> None:
    world.refusals["restore"] = HypervisorError("libvirt could not restore the checkpoint: no", "mend it")
    result = go()
    assert (result.outcome, result.ok, result.guest_survived) == ("error", False, False)
    assert result.title == "libvirt could not restore the checkpoint: no"
    assert result.reason == "libvirt could not restore the checkpoint: no (hint: mend it)"
    assert result.directory is not None
    assert (result.directory / "result.json").exists()


def test_a_checkpoint_that_does_not_restore_is_made_anew_once(go: Go, world: World) -> None:
    go(options=run.Options(steps=()))
    world.asked.clear()
    world.refusals["restore"] = HypervisorError("no")
    go(options=run.Options(fresh=True))
    assert world.asked == ["restore", "restore", "start", "save", "stop", "restore"]


def test_a_restore_that_fails_once_is_tried_once_more_and_costs_no_checkpoint(
    go: Go, world: World, events: list[Event]
) -> None:
    go(options=run.Options(steps=()))
    world.asked.clear()
    world.refusals_once["restore"] = HypervisorUnavailable(
        "libvirt could not restore the checkpoint: its process ended"
    )
    assert go(options=run.Options(fresh=True)).outcome == "pass"
    assert world.asked == ["restore", "restore"]
    assert any("retrying once" in note for note in notes(events))


@pytest.mark.parametrize("error", [HypervisorUnavailable("cannot open libvirt at embed: No module named 'libvirt'")])
def test_a_libvirt_that_cannot_be_reached_costs_no_checkpoint(go: Go, world: World, error: HypervisorError) -> None:
    go(options=run.Options(steps=()))
    (checkpoint,) = paths.checkpoints().iterdir()
    world.refusals["restore"] = error
    assert go(options=run.Options(fresh=True)).title == error.message
    assert list(paths.checkpoints().iterdir()) == [checkpoint]


def test_a_checkpoint_that_another_lab_reads_is_not_removed(go: Go, world: World) -> None:
    go(options=run.Options(steps=()))
    (checkpoint,) = paths.checkpoints().iterdir()
    inode = checkpoint.stat().st_ino
    world.refusals["restore"] = HypervisorError("no")
    with read_checkpoint(checkpoint.name):
        assert go(options=run.Options(fresh=True)).outcome == "error"
    assert checkpoint.stat().st_ino == inode


def test_a_checkpoint_that_a_guest_of_another_lab_stands_on_is_not_removed(
    go: Go, world: World, tmp_path: Path
) -> None:
    go(options=run.Options(steps=()))
    (checkpoint,) = paths.checkpoints().iterdir()
    world.refusals["restore"] = HypervisorError("no")
    stand_in = tmp_path / "qemu-system-stand-in"
    stand_in.symlink_to("/bin/sh")
    with Conversation([stand_in, "-c", f"exec 5< {checkpoint}/disk.qcow2; echo here; read line"], {}) as other:
        assert other.listen(Deadline(10)) == "here"
        assert go(options=run.Options(fresh=True)).outcome == "error"
        assert checkpoint.exists()
    go(options=run.Options(fresh=True))
    assert "save" in world.asked[-5:]


def test_a_boot_that_panics_is_tried_once_more(go: Go, world: World, events: list[Event]) -> None:
    world.boot_panics = 1
    assert go().outcome == "pass"
    assert any(note.endswith(": booting once more") for note in notes(events))


def test_a_boot_that_panics_twice_is_an_error(go: Go, world: World) -> None:
    world.boot_panics = 2
    result = go()
    assert (result.outcome, world.boot_panics) == ("error", 0)
    assert result.title is not None and "panicked while it booted: Kernel panic" in result.title


def test_a_guest_that_cannot_be_entered_is_an_error_and_no_verdict_on_the_module(go: Go, world: World) -> None:
    go()
    world.refusals["agent"] = GuestUnreachable("no answer from the guest's agent")
    world.refusals["shell"] = LabError("127.0.0.1:40001 answers with another ssh host key than this guest's")
    result = go(options=run.Options(fresh=True))
    assert result.outcome == "error"
    assert result.title == "127.0.0.1:40001 answers with another ssh host key than this guest's"


def test_a_guest_whose_agent_does_not_answer_is_entered_over_ssh(go: Go, world: World) -> None:
    world.refusals["agent"] = GuestUnreachable("no answer from the guest's agent")
    assert go().outcome == "pass"
    del world.refusals["agent"]
    world.refusals["shell"] = LabError("nobody is to ask for ssh")
    assert go(options=run.Options(fresh=True)).outcome == "pass"


def test_a_run_that_was_killed_leaves_a_busy_guest_that_is_restored_first(
    go: Go, lab: Lab, events: list[Event]
) -> None:
    go()
    write_record(lifecycle.lab_files(lab).guest("debian"), dataclasses.replace(record_of(lab), state="busy"))
    assert go().outcome == "pass"
    assert notes(events) == ["restored, because its last run was interrupted"]


def test_a_guest_whose_qemu_died_is_restored_first(go: Go, world: World, events: list[Event]) -> None:
    go()
    for machine in world.machines.values():
        machine.end()
    assert go().outcome == "pass"
    assert notes(events) == ["restored, because it no longer runs"]


def test_destroy_leaves_nothing_of_the_lab(go: Go, lab: Lab, world: World, events: list[Event]) -> None:
    go()
    gone = lifecycle.destroy_lab(world.host, lab, [], all_state=True, report=events.append)
    assert gone[0] == "debian"
    assert hypervisor.processes(lifecycle.lab_files(lab).root) == []
    left = [p for p in (*paths.state_home().rglob("*"), *paths.cache_home().rglob("*")) if p.is_file()]
    assert [p.name for p in left if p.parent.name not in ("keys",)] == []
