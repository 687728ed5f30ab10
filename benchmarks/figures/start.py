"""Measure how long a user waits for a guest."""

from __future__ import annotations

import os

from benchmarks.companions import virtme
from benchmarks.frame import Figure
from benchmarks.world import World


def up(world: World) -> float:
    """Measure `kmlab up` of a stopped guest; its last action is a command in the guest."""
    world.kmlab("down")
    took, _ = world.kmlab("up")
    return took


def up_after_panic(world: World) -> float:
    """Measure the same after a run in which the guest's kernel panicked."""
    world.kmlab("run", str(world.copied("panic")), accept=(0, 1))
    took, _ = world.kmlab("up")
    return took


def boot(world: World) -> float:
    """Measure virtme-ng from its start to the end of one command."""
    return virtme().boot(world, "true")


def read_checkpoint(world: World) -> float:
    """Measure reading the file with the guest's memory once; it is in the page cache, as for `kmlab up`."""
    memory = world.checkpoint() / "memory"
    took, _ = world.run(["dd", f"if={memory}", f"of={os.devnull}", "bs=1M"])
    return took


FIGURES = (
    Figure(
        name="restore to first command",
        what="kmlab up of a stopped guest",
        companion="virtme-ng, boot to first command",
        target=0.10,
        ours=up,
        theirs=boot,
    ),
    Figure(
        name="panic to next first command",
        what="kmlab up after a run that panicked",
        companion="virtme-ng, boot to first command",
        target=0.15,
        ours=up_after_panic,
        theirs=boot,
    ),
    Figure(
        name="kmlab up",
        what="kmlab up of a stopped guest",
        companion="reading the checkpoint once",
        target=5,
        ours=up,
        theirs=read_checkpoint,
    ),
)
