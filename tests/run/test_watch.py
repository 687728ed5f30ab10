"""The loop of `kmlab watch`, with fake doors: what begins a run and what does not, and what is shown and told of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError, KmlabError
from kmlab.common.events import Event, Note, Started
from kmlab.config.lab import load_lab
from kmlab.provision.guest import read_record
from kmlab.provision.lifecycle import lab_files
from kmlab.run import run, watch
from kmlab.run.result import RunResult
from kmlab.run.watch import WatchTarget
from kmlab.testing import Act, FakeModule, FakeSaves, World
from tests.story import LAB, OOPS, PANIC


@dataclass
class Shown:
    """A view that remembers."""

    results: list[RunResult] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    """What the command on a verdict said."""
    errors: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    on_event: Callable[[Event], None] | None = None

    def hear(self, event: Event) -> None:
        self.events.append(event)
        if self.on_event:
            self.on_event(event)

    def begin(self, watched: WatchTarget) -> None:
        self.events.clear()

    def verdict(self, result: RunResult) -> None:
        self.results.append(result)

    def command_output(self, line: str) -> None:
        self.words.append(line)

    def show_error(self, error: KmlabError) -> None:
        self.errors.append(error.message)

    def waiting(self, what: str) -> None:
        self.waits.append(what)

    @property
    def outcomes(self) -> list[str]:
        return [result.outcome for result in self.results]


@dataclass
class Bench:
    """A lab with the module hello in it, watched with fake doors."""

    folder: Path
    world: World
    shown: Shown = field(default_factory=Shown)

    @property
    def hello(self) -> Path:
        return self.folder / "hello"

    def save(self, text: str, name: str = "hello.c") -> None:
        """As vim does: what was there is put aside, and a new file is renamed to its name."""
        aside = self.hello / f".{name}.new"
        aside.write_text(text)
        aside.replace(self.hello / name)

    def behaves(self, **acts: Act) -> None:
        self.world.modules["hello"] = FakeModule(name="hello", **acts)  # type: ignore[arg-type]

    def watch(
        self,
        *then: Callable[[], object],
        saves: FakeSaves | None = None,
        directory: str = "hello",
        guests: tuple[str, ...] = ("debian",),
        options: run.Options | None = None,
        command: str | None = None,
    ) -> FakeSaves:
        place = self.folder / directory
        place = place if place.exists() else Path(directory)
        saves = saves or FakeSaves(*then)

        def look() -> WatchTarget:
            lab = load_lab(self.folder / "lab.yaml")
            module = lab.module_for(place)
            return WatchTarget(lab, module, [lab.guest(name) for name in guests])

        with pytest.raises(KeyboardInterrupt):
            watch.watch(self.world.host, look, options or run.Options(), saves, self.shown, command)
        return saves


@pytest.fixture
def bench(xdg: Path, world: World) -> Bench:
    folder = xdg / "lab"
    for name in ("hello", "params"):
        (folder / name).mkdir(parents=True)
        (folder / name / "Kbuild").write_text(f"obj-m := {name}.o\n")
        (folder / name / f"{name}.c").write_text("/* nothing */\n")
    (folder / "lab.yaml").write_text(LAB)
    return Bench(folder, world)


# --- what begins a run ---------------------------------------------------------------------------------------------


def test_the_first_run_is_at_once_and_the_next_on_a_save(bench: Bench) -> None:
    bench.watch(lambda: None, lambda: bench.save("/* more */\n"))
    assert bench.shown.outcomes == ["pass", "pass"]
    assert bench.world.asked.count("restore") == 1, "a clean guest is taken as it is"
    assert set(bench.shown.waits) == {"a save in hello"}


def test_a_save_that_leaves_a_file_as_it_was_counts_too(bench: Bench) -> None:
    def touch() -> None:
        os.utime(bench.hello / "hello.c", ns=(1, 1))

    bench.watch(touch)
    assert len(bench.shown.results) == 2


def test_what_a_build_an_editor_or_git_leaves_begins_nothing(bench: Bench) -> None:
    def litter() -> None:
        for name in (
            *("hello.o", "hello.ko", "hello.mod", "hello.mod.c", "hello.mod.o", ".hello.ko.cmd", ".hello.o.d"),
            *("modules.order", "Module.symvers", ".hello.c.swp", ".hello.c.swx", "hello.c~", "4913", "#hello.c#"),
            *(".goutputstream-AB12CD", ".hello.c.kate-swp", "hello.c___jb_tmp___"),
        ):
            (bench.hello / name).write_text("x")
        (bench.hello / ".#hello.c").symlink_to("me@host.1234")
        for name in (".git", ".kmlab", ".tmp_versions", "__pycache__"):
            (bench.hello / name).mkdir()
            (bench.hello / name / "x").write_text("x")

    bench.watch(litter)
    assert len(bench.shown.results) == 1


def test_many_files_saved_at_a_time_are_one_run(bench: Bench) -> None:
    def checkout() -> None:
        for number in range(40):
            bench.save("/* other */\n", f"part{number}.c")
        (bench.hello / "deep").mkdir()
        (bench.hello / "deep" / "x.h").write_text("")

    bench.watch(checkout)
    assert len(bench.shown.results) == 2


@pytest.mark.parametrize(("step", "built"), [("sync hello", 2), ("build hello", 3)])
def test_a_save_before_the_module_is_loaded_ends_the_run_and_the_newest_counts(
    bench: Bench, step: str, built: int
) -> None:
    saves = FakeSaves()

    def hear(event: Event) -> None:
        if isinstance(event, Started) and event.what == step and len(bench.shown.results) == 1:
            bench.shown.on_event = None
            bench.save("/* newer */\n")
            saves.news = True

    bench.shown.on_event = hear

    saves.then = [lambda: bench.save("/* new */\n")]
    bench.watch(saves=saves)
    assert bench.shown.outcomes == ["pass", "pass"]
    assert sum("insmod" in line for line in bench.world.lines) == 2
    assert sum(" make " in line for line in bench.world.lines) == built
    files = lab_files(load_lab(bench.folder / "lab.yaml"))
    record = read_record(files.guest("debian"))
    assert record is not None and record.state == "clean"
    assert len(list(files.runs.iterdir())) == 2, "of a run that was given up nothing is kept"
    assert bench.world.asked.count("restore") == 1


def test_a_save_while_the_module_is_loaded_lets_the_run_end_and_then_counts(bench: Bench) -> None:
    saves = FakeSaves()

    def hear(event: Event) -> None:
        if isinstance(event, Started) and event.what == "unload hello":
            bench.shown.on_event = None
            bench.save("/* newer */\n")
            saves.news = True

    bench.shown.on_event = hear

    bench.watch(saves=saves)
    assert bench.shown.outcomes == ["pass", "pass"]
    assert bench.world.asked.count("restore") == 1


# --- the guest -----------------------------------------------------------------------------------------------------


def test_a_build_that_fails_costs_no_restore(bench: Bench) -> None:
    def breaks() -> None:
        bench.behaves(build=Act(code=2, error="hello.c:1:1: error: expected identifier\n"))
        bench.save("int\n")

    def mends() -> None:
        bench.behaves()
        bench.save("/* mended */\n")

    bench.watch(breaks, mends)
    assert bench.shown.outcomes == ["pass", "build-failed", "pass"]
    assert bench.world.asked.count("restore") == 1


def test_a_guest_that_an_oops_left_dirty_is_restored_on_the_next_save_and_not_before(bench: Bench) -> None:
    bench.behaves(load=Act(code=137, kernel=OOPS, taint=1 << 7))
    restored = []

    def mends() -> None:
        restored.append(bench.world.asked.count("restore"))
        bench.behaves()
        bench.save("/* mended */\n")

    bench.watch(mends)
    assert bench.shown.outcomes == ["oops", "pass"]
    assert restored == [1], "until then one may look into it"
    assert bench.world.asked.count("restore") == 2
    assert any(isinstance(e, Note) and "restored, because" in e.text for e in bench.shown.events)


def test_a_guest_that_died_is_there_again_while_the_person_reads(bench: Bench) -> None:
    bench.behaves(load=Act(kernel=PANIC, ends="lost"))
    restored = []
    bench.watch(lambda: restored.append(bench.world.asked.count("restore")))
    assert bench.shown.outcomes == ["panic"]
    assert restored == [2]


def test_each_guest_that_was_asked_for_gives_a_verdict(bench: Bench) -> None:
    bench.watch(lambda: bench.save("/* more */\n"), guests=("debian", "other"))
    assert sorted(result.guest for result in bench.shown.results) == ["debian", "debian", "other", "other"]
    assert bench.world.asked.count("restore") == 2, "they stay up in between"


def test_the_options_of_a_run_hold_for_each(bench: Bench) -> None:
    bench.watch(lambda: bench.save("/* more */\n"), options=run.Options(fresh=True, params={"count": 7}))
    assert bench.world.asked.count("restore") == 2
    assert len(bench.shown.results) == 2


# --- what may go wrong ---------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_at_the_start_is_bad_input(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        bench.watch(directory="absent")


def test_a_folder_that_goes_away_is_waited_for(bench: Bench) -> None:
    aside = bench.folder / "aside"
    bench.watch(
        lambda: shutil.move(bench.hello, aside), lambda: None, lambda: shutil.move(aside, bench.hello), lambda: None
    )
    assert len(bench.shown.results) == 2
    assert len(bench.shown.errors) == 1 and "no such folder" in bench.shown.errors[0]
    assert "hello to exist again" in bench.shown.waits


def test_a_mistake_in_lab_yaml_is_shown_and_its_mending_begins_a_run(bench: Bench) -> None:
    file = bench.folder / "lab.yaml"
    bench.watch(lambda: file.write_text(LAB + "gests: {}\n"), lambda: file.write_text(LAB))
    assert len(bench.shown.results) == 2
    assert len(bench.shown.errors) == 1
    assert "lab.yaml:9: " in bench.shown.errors[0]


def test_what_lab_yaml_says_anew_holds_for_the_next_run(bench: Bench) -> None:
    file = bench.folder / "lab.yaml"
    entry = "  hello: {source: hello, expect: {log: [never said]}}\n"
    bench.watch(lambda: file.write_text(LAB + entry))
    assert [result.ok for result in bench.shown.results] == [True, False]


def test_an_entry_of_lab_yaml_may_move_to_another_folder(bench: Bench) -> None:
    file = bench.folder / "lab.yaml"
    file.write_text(LAB + "  mine: {source: hello}\n")
    saves = bench.watch(lambda: file.write_text(LAB + "  mine: {source: params}\n"), directory="mine")
    assert saves.watched == [bench.hello, bench.folder / "params"]
    assert [result.source for result in bench.shown.results] == ["hello", "params"]


def test_a_folder_without_a_makefile_is_said_and_the_loop_goes_on(bench: Bench) -> None:
    bench.watch((bench.hello / "Kbuild").unlink, lambda: bench.save("obj-m := hello.o\n", "Kbuild"))
    assert bench.shown.outcomes == ["pass", "pass"]
    assert len(bench.shown.errors) == 1 and "no Kbuild file" in bench.shown.errors[0]


# --- --exec --------------------------------------------------------------------------------------------------------


def test_the_command_is_told_of_each_verdict_in_its_environment(bench: Bench) -> None:
    def breaks() -> None:
        bench.behaves(build=Act(code=2, error="hello.c:3:7: error: expected identifier\n"))
        bench.save("int\n")

    bench.behaves(load=Act(code=137, kernel=OOPS, taint=1 << 7))
    words = "OUTCOME OK MODULE GUEST FUNCTION FILE LINE"
    bench.watch(
        breaks, command=f'echo "{" ".join(f"$KMLAB_{word}," for word in words.split())}"; test -f "$KMLAB_RESULT"'
    )
    assert bench.shown.words == [
        "oops, 0, hello, debian, hello_init, , ,",
        "build-failed, 0, hello, debian, , hello.c, 3,",
    ]
    assert bench.shown.errors == []


def test_what_a_guest_says_is_never_a_part_of_the_command(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nasty = "'; touch proof; $(touch proof) \x07 `touch proof`"
    bench.behaves(load=Act(kernel=(f"<0>Kernel panic - not syncing: {nasty}", *PANIC[1:]), ends="lost"))
    bench.watch(command='echo "$KMLAB_TITLE"')
    assert nasty.replace("\x07", "\\x07") in bench.shown.words[0]
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_fails_is_shown_and_ends_nothing(bench: Bench) -> None:
    bench.watch(lambda: bench.save("/* more */\n"), command="echo so; exit 3")
    assert len(bench.shown.results) == 2
    assert bench.shown.words == ["so", "so"]
    assert bench.shown.errors == ["--exec: `echo so; exit 3` ended with code 3"] * 2
