"""Measure what Secure Boot costs a run: signing, and a guest that checks signatures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.frame import Figure
from benchmarks.world import SCRATCH, World
from kmlab.host.key_files import find_saved_pair, save_pair
from kmlab.kernel.signing.pkcs7 import make_key_pair

_LAB = """\
name: secure
guests:
  secure: {image: debian-12, cpus: 2, memory: 1G, secure_boot: true}
  plain: {image: debian-12, cpus: 2, memory: 1G}
"""


def _lab(world: World) -> Path:
    """Return the lab with both guests; its key is kept between benchmarks, and so is its checkpoint."""
    place = world.folder / "secure.yaml"
    if not place.exists():
        keys = find_saved_pair(SCRATCH / "key") or save_pair(*make_key_pair("kmlab bench"), SCRATCH / "key")
        place.write_text(_LAB)
        world.kmlab("sign", "--mok", "--key", str(keys.key), lab=place)
        world.kmlab("up", "--all", lab=place)
    return place


def _run(world: World, guest: str, *options: str) -> float:
    took, _ = world.kmlab("run", str(world.copied("hello")), "--guest", guest, *options, lab=_lab(world))
    return took


FIGURES = (
    Figure(
        name="secure boot, from the checkpoint",
        what="kmlab run --fresh examples/hello, Secure Boot",
        companion="the same without Secure Boot",
        target=1.2,
        ours=lambda world: _run(world, "secure", "--fresh"),
        theirs=lambda world: _run(world, "plain", "--fresh"),
    ),
    Figure(
        name="secure boot, running guest",
        what="kmlab run examples/hello, Secure Boot",
        companion="the same without Secure Boot",
        target=1.2,
        ours=lambda world: _run(world, "secure"),
        theirs=lambda world: _run(world, "plain"),
    ),
)
