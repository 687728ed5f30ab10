"""The story of a run, told with fake doors: what each thing that a module or a guest may do comes to."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kmlab import provision, run, store
from kmlab.errors import ConfigError, GuestUnreachable, HypervisorError, LabError
from kmlab.events import Event, Note
from kmlab.guest import GuestRecord, read_record, write_record
from kmlab.host import hypervisor
from kmlab.lab import Expect, Lab, load_lab
from kmlab.result import RunResult, to_json
from kmlab.testing import RELEASE, TEXT, Act, FakeModule, World, module_image

PANIC = ("Kernel panic - not syncing: had enough", "---[ end Kernel panic - not syncing: had enough ]---")
OOPS = (
    "<1>BUG: kernel NULL pointer dereference, address: 0000000000000000",
    "<1>#PF: supervisor read access in kernel mode",
    "<4>Oops: 0000 [#1] PREEMPT SMP NOPTI",
    "<4>CPU: 0 PID: 321 Comm: insmod Tainted: G           OE      6.1.0-0-fake-amd64 #1",
    "<4>RIP: 0010:hello_init+0x5/0x10 [hello]",
    "<4>Call Trace:",
    "<4> <TASK>",
    "<4> do_one_initcall+0x56/0x230",
    "<4> </TASK>",
    "<4>---[ end trace 0000000000000000 ]---",
)
LAB = """\
name: fake
guests:
  debian: {image: debian-12, memory: 256M}
  other: {image: debian-12, memory: 256M}
keep_runs: 3
build: guest
modules:
  params: {source: params, params: {count: 3}, exercise: ./check.sh, expect: {outcome: pass, log: ["count is 3"]}}
"""
Go = Callable[..., RunResult]


class Space(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def lab(xdg: Path) -> Lab:
    """A lab with the folders of two modules, hello and params."""
    for name in ("hello", "params"):
        folder = xdg / "lab" / name
        folder.mkdir(parents=True)
        (folder / "Kbuild").write_text(f"obj-m := {name}.o\n")
        (folder / f"{name}.c").write_text("/* nothing */\n")
    (xdg / "lab" / "lab.yaml").write_text(LAB)
    return load_lab(xdg / "lab" / "lab.yaml")


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def go(lab: Lab, world: World, events: list[Event]) -> Go:
    """Run a module that behaves in this way; the rest are the run's options."""

    def story(
        name: str = "hello", *, guest: str = "debian", options: object = None, lab: Lab = lab, **acts: object
    ) -> RunResult:
        world.modules[name] = FakeModule(name=name, **acts)  # type: ignore[arg-type]
        wanted = lab.module_for(lab.folder / name)
        chosen = options if isinstance(options, run.Options) else run.Options()
        return run.run(world.host, lab, lab.guest(guest), wanted, chosen, events.append)

    return story


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def record_of(lab: Lab) -> GuestRecord:
    record = read_record(provision.lab_files(lab).guest("debian"))
    assert record is not None
    return record


def step(result: RunResult, name: str) -> str:
    return next(s.outcome for s in result.steps if s.name == name)


def test_a_module_that_does_nothing_wrong_passes(go: Go) -> None:
    result = go(load=Act(kernel=("Hello, world.",), taint=1 << 12), unload=Act(kernel=("Goodbye, world.",)))
    assert (result.outcome, result.ok, result.title, result.reason) == ("pass", True, None, None)
    assert [s.name for s in result.steps] == ["sync", "build", "load", "unload"]
    assert [r.text for r in result.log] == ["Hello, world.", "Goodbye, world."]
    assert (result.taint_before, result.taint_after) == (0, 1 << 12)
    assert result.kernel == RELEASE
    assert result.guest_survived


def test_image_base_and_checkpoint_are_made_once(go: Go, world: World) -> None:
    go()
    assert world.asked == ["build-image", "start", "stop", "start", "save", "stop", "restore"]
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


def test_a_module_that_will_not_unload_leaves_the_guest_dirty(go: Go, lab: Lab) -> None:
    result = go(unload=Act(code=1, error="rmmod: ERROR: Module hello is in use\n"))
    assert result.outcome == "unload-failed"
    assert result.reason
    assert record_of(lab).state == "dirty"


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
    assert [r.text for r in result.log] == ["about to give up", *PANIC]
    assert hypervisor.processes(provision.lab_files(lab).root) == []
    assert read_record(provision.lab_files(lab).guest("debian")) is None
    assert result.seconds < 20
    assert go().outcome == "pass"


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


def test_a_warning_leaves_the_guest_dirty(go: Go, lab: Lab) -> None:
    result = go(load=Act(taint=1 << 9))
    assert result.outcome == "warning"
    assert record_of(lab).state == "dirty"


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
    files = provision.lab_files(lab).guest("debian")
    assert result.title == f"{files.root}: the disk of guest 'debian' needs 64 MiB, 3 MiB are free"
    assert result.reason is not None and "XDG_STATE_HOME" in result.reason
    world.monitor.clear()
    world.refusals.clear()
    assert go().outcome == "pass"


def test_where_its_sections_are_in_memory_is_kept_with_the_run(go: Go) -> None:
    result = go()
    assert result.directory is not None
    assert (result.directory / "sections.txt").read_text() == f"hello .text {TEXT:#x}\n"


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
    assert world.asked == ["restore", "start", "save", "stop", "restore"]


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
    write_record(provision.lab_files(lab).guest("debian"), dataclasses.replace(record_of(lab), state="busy"))
    assert go().outcome == "pass"
    assert notes(events) == ["restored, because its last run was cut off"]


def test_a_guest_whose_qemu_died_is_restored_first(go: Go, world: World, events: list[Event]) -> None:
    go()
    for machine in world.machines.values():
        machine.end()
    assert go().outcome == "pass"
    assert notes(events) == ["restored, because it was not running any more"]


def test_a_folder_that_nothing_can_be_made_of_is_said_before_a_guest_is_started(go: Go, lab: Lab, world: World) -> None:
    (lab.folder / "hello" / "Kbuild").write_text("# nothing to build\n")
    with pytest.raises(ConfigError, match="no Kbuild file, and no Makefile with obj-m"):
        go()
    with pytest.raises(ConfigError, match="absent: no such folder"):
        go("absent")
    assert world.asked == []
    assert not provision.lab_files(lab).runs.exists()


def test_all_modules_of_a_test_are_looked_at_before_the_first_one_runs(lab: Lab) -> None:
    assert [module.name for module in run.modules_under(lab, [])] == ["params"]
    assert [module.name for module in run.modules_under(lab, [lab.folder / "hello"])] == ["hello"]
    with pytest.raises(ConfigError, match="absent: no such folder"):
        run.modules_under(lab, [lab.folder / "hello", lab.folder / "absent"])
    (lab.folder / "params" / "Kbuild").unlink()
    with pytest.raises(ConfigError, match=r"lab\.yaml:8: .*params: no Kbuild file"):
        run.modules_under(lab, [])
    with pytest.raises(ConfigError, match="there are no modules"):
        run.modules_under(dataclasses.replace(lab, modules={}), [])


def test_what_is_no_folder_is_said_before_a_guest_is_started(lab: Lab, world: World, events: list[Event]) -> None:
    wanted = lab.module_for(lab.folder / "hello" / "hello.c")
    with pytest.raises(ConfigError) as raised:
        run.run(world.host, lab, lab.guest("debian"), wanted, run.Options(), events.append)
    assert raised.value.hint == f"give its folder: {lab.folder / 'hello'}"
    assert world.asked == []


def test_folders_of_one_name_are_modules_of_two_names(xdg: Path) -> None:
    course = xdg / "course"
    for place in ("week1/hello", "week2/hello", "week2/other/src", ".git/hello"):
        (course / place).mkdir(parents=True)
        (course / place / "Makefile").write_text("obj-m := a.o\n")
    (course / "Makefile").write_text("all:\n\tfor d in week*; do make -C $$d; done\n")
    (course / "week2/other/Makefile").write_text("all:\n\tmake -C /lib/modules/x/build M=$(PWD)/src\n")
    (course / "lab.yaml").write_text("name: course\nguests:\n  debian: {image: debian-12}\n")
    found = run.modules_under(load_lab(course / "lab.yaml"), [course])
    told = [(module.name, str(module.source.relative_to(course))) for module in found]
    assert told == [("hello", "week1/hello"), ("week2-hello", "week2/hello"), ("src", "week2/other/src")]
    assert run.modules_under(load_lab(course / "lab.yaml"), [course, course / "week1"]) == found


def test_a_kind_that_no_finding_has_is_bad_input(lab: Lab, world: World, go: Go) -> None:
    file = lab.folder / "lab.yaml"
    file.write_text(LAB.replace("outcome: pass, log:", "outcome: oops, kind: null-derefrence, log:"))
    with pytest.raises(ConfigError) as raised:
        run.modules_under(load_lab(file), [])
    assert raised.value.message.endswith(
        "lab.yaml:8: 'kind' of 'expect' of module 'params' is 'null-derefrence', which no finding is"
    )
    assert "null-dereference" in (raised.value.hint or "")


def test_the_folder_that_has_the_makefile_is_named(go: Go, lab: Lab) -> None:
    hello = lab.folder / "hello"
    (hello / "src").mkdir()
    (hello / "Kbuild").rename(hello / "src" / "Makefile")
    with pytest.raises(ConfigError) as raised:
        go()
    assert raised.value.hint == f"give the folder that has one: {hello / 'src'}"


def test_result_json_says_what_the_command_says(go: Go) -> None:
    result = go()
    assert result.directory is not None
    written = json.loads((result.directory / "result.json").read_text())
    assert written == {"schema": "kmlab.run/1", "results": [to_json(result)]}
    for name in ("console", "kernel_log", "build_log"):
        assert (result.directory / written["results"][0]["artifacts"][name]).exists()


def test_the_oldest_runs_are_removed(go: Go, lab: Lab) -> None:
    runs = provision.lab_files(lab).runs
    for year in range(2001, 2006):
        (runs / f"{year}0101-000000-abcd-hello-debian").mkdir(parents=True)
    newest = go().directory
    left = sorted(path.name[:4] for path in runs.iterdir() if path != newest)
    assert left == ["2004", "2005"]


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


def test_keep_leaves_the_module_loaded_and_the_guest_kept(go: Go, lab: Lab, world: World) -> None:
    result = go(options=run.Options(keep=True))
    assert result.outcome == "pass"
    assert "unload" not in [s.name for s in result.steps]
    assert (record_of(lab).state, record_of(lab).reason) == ("kept", "")


def test_parameters_of_the_lab_and_of_the_command_line_reach_insmod(go: Go, world: World) -> None:
    image = module_image("params", parmtype="count:int")
    go("params", images={"params.ko": image}, options=run.Options(params={"count": 5}))
    assert any("insmod ./params.ko count=5" in line for line in world.lines)


def test_destroy_leaves_nothing_of_the_lab(go: Go, lab: Lab, world: World, events: list[Event]) -> None:
    go()
    gone = provision.destroy_lab(world.host, lab, [], all_state=True, report=events.append)
    assert gone[0] == "debian"
    assert hypervisor.processes(provision.lab_files(lab).root) == []
    left = [p for p in (*store.state_home().rglob("*"), *store.cache_home().rglob("*")) if p.is_file()]
    assert [p.name for p in left if p.parent.name not in ("keys",)] == []


def test_each_new_flag_of_the_taint_is_put_down_to_the_step_that_set_it(go: Go, lab: Lab) -> None:
    result = go("params", load=Act(taint=1 << 12, kernel=("params: count is 3",)), exercise=Act(taint=1 << 9))
    told = to_json(result)
    assert told["taint_set_by"] == {"WARN": "exercise", "OOT_MODULE": "load"}
    assert told["modules"] == {"before": [], "after": []}


def test_the_taint_of_a_guest_that_died_is_what_its_last_words_said(go: Go) -> None:
    result = go(load=Act(kernel=(*OOPS, "<0>Kernel panic - not syncing: Fatal exception", PANIC[1]), ends="hangs"))
    told = to_json(result)
    assert told["taint_set_by"] == {"OOT_MODULE": "load", "UNSIGNED_MODULE": "load"}
    assert told["modules"]["after"] is None


@pytest.mark.parametrize(
    ("setting", "act", "kept"),
    [
        ("auto", Act(kernel=PANIC, ends="hangs"), True),
        ("auto", Act(), False),
        ("auto", Act(code=137, kernel=OOPS), False),
        ("auto", Act(ends="lost"), False),
        ("always", Act(), True),
        ("never", Act(kernel=PANIC, ends="hangs"), False),
    ],
)
def test_memory_is_kept_as_lab_yaml_says(go: Go, lab: Lab, world: World, setting: str, act: Act, kept: bool) -> None:
    result = go(load=act, lab=dataclasses.replace(lab, vmcore=setting))
    assert result.directory is not None
    assert ("dump" in world.asked, result.vmcore == "vmcore", (result.directory / "vmcore").exists()) == (kept,) * 3
    assert not list(provision.lab_files(lab).guest("debian").root.glob("memory*"))


def test_a_dump_beyond_the_cap_is_told_and_not_kept(go: Go, lab: Lab, events: list[Event]) -> None:
    result = go(lab=dataclasses.replace(lab, vmcore="always", vmcore_max=8000))
    assert (result.outcome, result.vmcore) == ("pass", None)
    assert result.directory is not None
    assert not (result.directory / "vmcore").exists()
    assert notes(events) == ["its memory was not kept: the dump is beyond vmcore_max, 0 MiB"]


def test_a_dump_that_fails_is_no_verdict_on_the_module(go: Go, world: World, events: list[Event]) -> None:
    world.refusals["dump"] = HypervisorError("libvirt could not dump the guest's memory: no")
    assert go(load=Act(kernel=PANIC, ends="hangs")).outcome == "panic"
    assert notes(events) == ["its memory was not kept: libvirt could not dump the guest's memory: no"]


def test_what_is_expected_on_this_kernel_is_what_counts(go: Go, lab: Lab) -> None:
    since = {(6, 0): Expect(outcome=("oops",), log=("wanted",)), (6, 4): Expect()}
    module = dataclasses.replace(lab.modules["params"], expect=Expect(outcome=("panic",), since=since))
    there = dataclasses.replace(lab, modules={"params": module})
    result = go("params", lab=there)
    assert (result.expect, result.ok) == (since[6, 0], False)
    assert "expected in the log: wanted" in result.unmet
    assert to_json(result)["expected"] == "oops"
