"""Measure what a debug kernel costs a run, and how fast a torture is; only if they are named, as a kernel is built."""

from __future__ import annotations

from pathlib import Path

from benchmarks.frame import Figure
from benchmarks.world import World

_LAB = """\
name: debug
guests:
  checked: {image: debian-12, kernel: debug, cpus: 2, memory: 1G}
  plain: {image: debian-12, cpus: 2, memory: 1G}
"""


def _lab(world: World) -> Path:
    """Return the lab with both guests up."""
    place = world.folder / "debug.yaml"
    if not place.exists():
        place.write_text(_LAB)
        world.kmlab("up", "--all", lab=place)
    return place


def _run(world: World, guest: str, *options: str) -> float:
    took, _ = world.kmlab("run", str(world.copied("hello")), "--guest", guest, *options, lab=_lab(world))
    return took


def _fault(world: World) -> float:
    """Return the seconds for one call of init that fails, with its leak check."""
    words = ("torture", str(world.copied("startstop")), "--guest", "checked", "--group", "faults")
    _, document = world.run_json(*words, lab=_lab(world))
    cases = document["cases"]
    return float(sum(case["seconds"] for case in cases)) / len(cases)


FIGURES = (
    Figure(
        name="debug kernel, from the checkpoint",
        what="kmlab run --fresh examples/hello, kernel: debug",
        companion="the same with the distribution's kernel",
        target=4.0,
        ours=lambda world: _run(world, "checked", "--fresh"),
        theirs=lambda world: _run(world, "plain", "--fresh"),
        only_named=True,
    ),
    Figure(
        name="torture, one failing call",
        what="a case of kmlab torture --group faults, kernel: debug",
        companion="kmlab run examples/hello on the same kernel",
        target=0.5,
        ours=_fault,
        theirs=lambda world: _run(world, "checked"),
        only_named=True,
    ),
)
