"""Which devices a module's drivers were bound to is part of the verdict; software devices are loaded before."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.common.events import Event, Note, silent
from kmlab.config.lab import Lab, load_lab
from kmlab.config.run_options import Options
from kmlab.run import run
from kmlab.run.result import RunResult, to_json
from kmlab.testing import Act, FakeModule, World, module_image
from tests.story import record_of

BOUND, UNBOUND = b"card\0pci:card\x000000:05:00.0\0\0", b"card\0pci:card\0\0"
IMAGE = module_image("card", imports=["__pci_register_driver"], alias="pci:v00001234d000011E8sv*sd*bc*sc*i*")


def driver(load: Act | None = None) -> FakeModule:
    return FakeModule(name="card", images={"card.ko": IMAGE}, load=load or Act(taint=1 << 12))


def lab_of(folder: Path, keys: str = "") -> Lab:
    source = folder / "card"
    source.mkdir(exist_ok=True)
    (source / "Kbuild").write_text("obj-m := card.o\n")
    (source / "card.c").write_text("\n")
    (folder / "lab.yaml").write_text(
        f"name: t\nbuild: guest\nguests: {{debian: {{image: debian-12}}}}\nmodules:\n  card: {{source: card{keys}}}\n"
    )
    return load_lab(folder / "lab.yaml")


def go(world: World, lab: Lab, *steps: str, notes: list[str] | None = None) -> RunResult:
    def note(event: Event) -> None:
        if isinstance(event, Note) and notes is not None:
            notes.append(event.text)

    options = Options(steps=steps, keep="unload" not in steps) if steps else Options()
    return run.run(
        world.host, lab, lab.guest("debian"), lab.modules["card"], options, note if notes is not None else silent
    )


def test_a_pass_names_the_devices(world: World, xdg: Path) -> None:
    world.modules["card"], world.drivers = driver(), BOUND
    result = go(world, lab_of(xdg))
    assert (result.outcome, result.reason) == ("pass", None)
    assert to_json(result)["drivers"] == [{"module": "card", "bus": "pci", "name": "card", "devices": ["0000:05:00.0"]}]
    assert [step.detail for step in result.steps if step.name == "probe"] == ["pci driver card: 0000:05:00.0"]


def test_a_pass_that_was_bound_to_nothing_says_so(world: World, xdg: Path) -> None:
    world.modules["card"], world.drivers = driver(), UNBOUND
    result = go(world, lab_of(xdg))
    assert (result.outcome, result.ok) == ("pass", True)
    assert result.reason is not None
    assert "card registers the pci driver card (it drives 1234:11e8), and no device was bound to it" in result.reason


def test_a_module_without_a_driver_is_not_asked(world: World, xdg: Path) -> None:
    world.modules["card"] = FakeModule(name="card")
    result = go(world, lab_of(xdg))
    assert result.drivers == () and result.outcome == "pass"
    assert not any("/drivers/" in line for line in world.lines)


@pytest.mark.parametrize(
    ("expected", "answer", "ok"),
    [
        ('"0000:05:00.0"', BOUND, True),
        ('"pci 0000:"', BOUND, True),
        ('"/05:00\\\\.\\\\d$/"', BOUND, True),
        ('"0000:06:00.0"', BOUND, False),
        ('"0000:05:00.0"', UNBOUND, False),
        ('"0000:05:00.0"', b"", False),
    ],
)
def test_an_expected_binding_counts(world: World, xdg: Path, expected: str, answer: bytes, ok: bool) -> None:
    world.modules["card"], world.drivers = driver(), answer
    result = go(world, lab_of(xdg, f", expect: {{bound: {expected}}}"))
    assert result.ok is ok
    assert result.outcome == ("pass" if ok else "test-failed")
    assert bool(result.unmet) is not ok
    if not ok:
        assert result.unmet[0].startswith("expected a driver to be bound to ")


def test_a_binding_that_the_exercise_makes_counts(world: World, xdg: Path) -> None:
    world.modules["card"], world.drivers = driver(), BOUND
    result = go(world, lab_of(xdg, ", exercise: ./check.sh"))
    assert [step.name for step in result.steps].count("probe") == 2
    assert result.drivers[0].devices == ("0000:05:00.0",)


def test_a_hostile_answer_decides_nothing(world: World, xdg: Path) -> None:
    world.modules["card"], world.drivers = driver(), b"\x1b[2J" * 1000 + b"\0pci:card\0\x1b]0;x\x07\0\0"
    result = go(world, lab_of(xdg))
    assert result.outcome == "pass"
    assert "\x1b" not in str(to_json(result))


MODPROBE = ', modprobe: ["i2c-stub chip_addr=0x48", dummy_hcd]'


def test_software_devices_are_loaded_before_and_unloaded_after(world: World, xdg: Path) -> None:
    world.modules["card"], world.drivers = driver(), BOUND
    lab = lab_of(xdg, MODPROBE)
    result = go(world, lab)
    assert (result.outcome, record_of(lab).state) == ("pass", "clean")
    steps = [(step.name, step.detail) for step in result.steps if step.name in ("modprobe", "load", "unload")]
    assert steps == [
        ("modprobe", "i2c-stub chip_addr=0x48"),
        ("modprobe", "dummy_hcd"),
        ("load", "card"),
        ("unload", "card"),
        ("unload", "i2c_stub, dummy_hcd: loaded as dependencies"),
    ]
    assert any("{ modprobe i2c-stub chip_addr=0x48 && " in line for line in world.lines)


def test_they_are_unloaded_after_a_refused_load_too(world: World, xdg: Path) -> None:
    refused = Act(code=1, error="insmod: ERROR: could not insert module ./card.ko: No such device\n")
    world.modules["card"] = driver(load=refused)
    lab = lab_of(xdg, MODPROBE)
    assert go(world, lab).outcome == "load-failed"
    assert any("rmmod i2c_stub" in line for line in world.lines)
    assert record_of(lab).state == "clean"


def test_one_that_stays_makes_the_guest_dirty(world: World, xdg: Path) -> None:
    world.modules["card"], world.stays = driver(), {"dummy_hcd"}
    lab = lab_of(xdg, MODPROBE)
    assert go(world, lab).outcome == "pass"
    assert record_of(lab).state == "dirty"


def test_load_leaves_them_and_unload_takes_them_away(world: World, xdg: Path) -> None:
    world.modules["card"] = driver()
    lab = lab_of(xdg, MODPROBE)
    go(world, lab, "build", "load")
    assert not any("rmmod" in line for line in world.lines)
    go(world, lab, "build", "unload")
    assert any("rmmod dummy_hcd; rmmod i2c_stub" in line for line in world.lines)


def test_a_kernel_without_it_is_the_lab_s_fault_not_the_module_s(world: World, xdg: Path) -> None:
    world.modules["card"] = driver()
    world.modules["i2c-stub"] = FakeModule(
        name="i2c-stub",
        load=Act(code=1, error="modprobe: FATAL: Module i2c-stub not found in directory /lib/modules/6.1\n"),
    )
    lab = lab_of(xdg, MODPROBE)
    result = go(world, lab)
    assert result.outcome == "error"
    assert (
        result.title is not None
        and "modprobe i2c-stub chip_addr=0x48: modprobe: FATAL: Module i2c-stub" in result.title
    )
    assert result.reason is not None and "`kernel: generic`" in result.reason
    assert record_of(lab).state == "dirty"


@pytest.mark.parametrize("line", ["i2c-stub; reboot", "../x", "a b=$(x)", "'a b'", "-r loop"])
def test_a_line_that_is_no_module_is_an_error(xdg: Path, line: str) -> None:
    if line == "-r loop":
        assert lab_of(xdg, ', modprobe: "loop"').modules["card"].software_devices == ("loop",)
        line = "loop -r"
    with pytest.raises(ConfigError, match=r"lab.yaml:5: .*'modprobe' of module 'card' must be a module of the kernel"):
        lab_of(xdg, f', modprobe: "{line}"')
