"""Measure the time from saving a file to the verdict."""

from __future__ import annotations

import json
import re
import time

from benchmarks.companions import virtme
from benchmarks.frame import Figure
from benchmarks.world import World


def run_fresh(world: World) -> float:
    hello = world.copied("hello")
    world.edit(hello / "hello.c")
    took, _ = world.kmlab("run", "--fresh", str(hello))
    return took


def run_again(world: World) -> float:
    """Measure `kmlab run` in a guest that runs and has built the module before."""
    hello = world.copied("hello")
    world.kmlab("run", str(hello))
    world.edit(hello / "hello.c")
    took, _ = world.kmlab("run", str(hello))
    return took


def watched(world: World) -> float:
    """Measure from a save to its verdict, with `kmlab watch`."""
    hello = world.copied("hello")
    with world.started("watch", "--json", str(hello)) as verdicts:
        verdicts.readline()
        began = time.perf_counter()
        world.edit(hello / "hello.c")
        document = json.loads(verdicts.readline())
        took = time.perf_counter() - began
    assert document["results"][0]["outcome"] == "pass", document
    return took


def make(world: World) -> float:
    """Measure kbuild alone, on the host with the distribution's headers, for a module that was built before."""
    hello, companion = world.copied("hello"), virtme()
    companion.make(world, hello)
    world.edit(hello / "hello.c")
    return companion.make(world, hello)


def make_boot_insmod_rmmod(world: World) -> float:
    """Measure the same without a lab: make on the host, then a virtme-ng guest that loads and unloads."""
    hello, companion = world.copied("hello"), virtme()
    tools = companion.tools
    script = f"{tools}/insmod {hello}/hello.ko && {tools}/rmmod hello"
    return make(world) + companion.boot(world, script)


def make_insmod_rmmod(world: World) -> float:
    """Measure make on the host, and insmod and rmmod in the guest itself."""
    hello = world.copied("hello")
    built = make(world)
    world.kmlab("build", str(hello))
    line = (
        "cd /var/lib/kmlab/modules/hello; "
        "for step in 'insmod hello.ko' 'rmmod hello'; do "
        "a=$(date +%s%N); $step; b=$(date +%s%N); echo took $((b-a)); done"
    )
    _, out = world.kmlab("ssh", "--", line)
    times = [int(digits) / 1e9 for digits in re.findall(r"took (\d+)", out)]
    assert len(times) == 2, out
    return built + sum(times)


FIGURES = (
    Figure(
        name="edit to verdict, fresh guest",
        what="kmlab run --fresh examples/hello",
        companion="host make + virtme-ng insmod, rmmod",
        target=0.30,
        ours=run_fresh,
        theirs=make_boot_insmod_rmmod,
    ),
    Figure(
        name="edit to verdict, running guest",
        what="kmlab run examples/hello",
        companion="make on the host",
        target=2.0,
        ours=run_again,
        theirs=make,
    ),
    Figure(
        name="save to verdict, watched",
        what="a save in a folder that kmlab watch is at",
        companion="make on the host",
        target=2.0,
        ours=watched,
        theirs=make,
    ),
    Figure(
        name="overhead of a run",
        what="kmlab run examples/hello",
        companion="make, insmod and rmmod themselves",
        target=1.0,
        kind="difference",
        ours=run_again,
        theirs=make_insmod_rmmod,
    ),
)
