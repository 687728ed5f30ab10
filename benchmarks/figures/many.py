"""Measure guests in parallel against the same guests one after another: time, memory and disk."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.frame import Figure
from benchmarks.world import World
from kmlab.common import paths
from kmlab.host.disk import disks

_GUESTS = ("one", "two", "three", "four")
_EXAMPLES = ("hello", "init_exit", "params", "multi", "oops", "build_error")


def restored_together(world: World) -> float:
    """Measure `kmlab up` of four stopped guests."""
    lab = _stopped(world)
    took, _ = world.kmlab("up", "--all", lab=lab)
    return took


def restored_in_turn(world: World) -> float:
    """Measure the same as four commands, one after the other."""
    lab = _stopped(world)
    return sum(world.kmlab("up", guest, lab=lab)[0] for guest in _GUESTS)


def memory_of_four(world: World) -> float:
    """Measure the MiB of each of four restored guests; shared memory is divided among them."""
    return _memory(world, _GUESTS)


def memory_of_one(world: World) -> float:
    return _memory(world, _GUESTS[:1])


def disk_of_four(world: World) -> float:
    """Measure the MiB on disk of each of four restored guests, without the shared base and checkpoint."""
    lab = _stopped(world)
    world.kmlab("up", "--all", lab=lab)
    labs = Path(world.environment["XDG_STATE_HOME"]) / "kmlab" / "labs"
    return sum(disks.size_on_disk(folder) for folder in labs.glob("many-*")) / len(_GUESTS) / 2**20


def disk_of_base_and_checkpoint(world: World) -> float:
    """Measure what a guest that shares nothing would need: image, base and checkpoint."""
    _, document = world.run_json("up", _GUESTS[0], lab=_lab(world))
    (guest,) = document["guests"]
    image = paths.read_json(paths.bases() / guest["base"] / "base.json")["image"]
    folders = (paths.images() / image, paths.bases() / guest["base"], paths.checkpoints() / guest["checkpoint"])
    return sum(map(disks.size_on_disk, folders)) / 2**20


def tested_together(world: World) -> float:
    """Measure `kmlab test` of six edited examples in four guests, from stopped guests to the table."""
    return _tested(world)


def tested_in_turn(world: World) -> float:
    """Measure the same command with one guest at a time."""
    return _tested(world, "--jobs", "1")


def run_by_hand(world: World) -> float:
    """Measure the 24 runs as `kmlab run` commands, one after the other."""
    lab = _stopped(world)
    folders = _edited(world)
    argv = [(str(folder), "--guest", guest) for guest in _GUESTS for folder in folders]
    return sum(world.kmlab("run", *words, lab=lab, accept=(0, 1))[0] for words in argv)


def _edited(world: World) -> list[Path]:
    """Change the examples' folders, so that the second figure does not find them built."""
    folders = [world.copied(example) for example in _EXAMPLES]
    for source in (source for folder in folders for source in folder.rglob("*.c")):
        world.edit(source)
    return folders


def _tested(world: World, *more: str) -> float:
    lab = _stopped(world)
    folders = _edited(world)
    took, _ = world.kmlab("test", *map(str, folders), "--all", *more, lab=lab, accept=(0, 1))
    return took


def _lab(world: World) -> Path:
    lab = world.folder / "many.yaml"
    guests = "".join(f"  {name}: {{image: debian-12, cpus: 2, memory: 1G}}\n" for name in _GUESTS)
    lab.write_text(f"name: many\nguests:\n{guests}")
    return lab


def _stopped(world: World) -> Path:
    lab = _lab(world)
    world.kmlab("down", "--all", lab=lab)
    return lab


def _memory(world: World, guests: tuple[str, ...]) -> float:
    """Return the average MiB of a QEMU: its proportional set size (proc_pid_smaps(5), Pss)."""
    lab = _stopped(world)
    _, document = world.run_json("up", *guests, lab=lab)
    sizes = []
    for guest in document["guests"]:
        text = Path(f"/proc/{guest['pid']}/smaps_rollup").read_text()
        size = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        assert size is not None
        sizes.append(int(size[1]) / 1024)
    return sum(sizes) / len(sizes)


FIGURES = (
    Figure(
        name="4 guests restored",
        what="kmlab up of four stopped guests",
        companion="four commands, one after another",
        target=0.7,
        ours=restored_together,
        theirs=restored_in_turn,
    ),
    Figure(
        name="4 guests × 6 examples",
        what="kmlab test, side by side",
        companion="the same, one guest after another",
        target=0.6,
        ours=tested_together,
        theirs=tested_in_turn,
        rounds=2,
    ),
    Figure(
        name="4 guests × 6 examples by hand",
        what="kmlab test, side by side",
        companion="24 times kmlab run, one after another",
        target=0.6,
        ours=tested_together,
        theirs=run_by_hand,
        rounds=2,
    ),
    Figure(
        name="memory of a guest, MiB",
        what="each of four that are up",
        companion="one that is up alone",
        target=1.05,
        ours=memory_of_four,
        theirs=memory_of_one,
        rounds=2,
    ),
    Figure(
        name="disk of a guest, MiB",
        what="each of four that are up",
        companion="image, base and checkpoint, which they share",
        target=0.1,
        ours=disk_of_four,
        theirs=disk_of_base_and_checkpoint,
        rounds=2,
    ),
)
