"""Measure the very first start, with an empty cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.frame import Figure
from benchmarks.world import World
from kmlab.common import paths
from kmlab.config import catalog
from kmlab.distribution import distribution_of
from kmlab.provision.plan.plan import installed_firmware

_IMAGE = "debian-12"
_PROMPT = b"login:"
_PATIENCE = 600.0


def first_up(world: World) -> float:
    """Measure image, base, checkpoint and guest; the packages come over the network."""
    world.kmlab("down")
    # Short, because it holds sockets.
    cache = Path(tempfile.mkdtemp(prefix="kmc", dir="/tmp"))
    try:
        argv = [sys.executable, "-m", "kmlab", "up", "--lab", str(world.lab)]
        took, _ = world.run(argv, env={"XDG_CACHE_HOME": str(cache)})
        return took
    finally:
        world.kmlab("down")
        paths.remove_tree(cache)


def unpack_and_boot(world: World) -> float:
    """Measure mmdebstrap with the same packages, and plain QEMU booting a finished base to its login prompt."""
    return _unpack(world) + _boot(world)


def _unpack(world: World) -> float:
    image = catalog.load_image(_IMAGE)
    source = catalog.find_architecture(image, os.uname().machine).packages
    assert source is not None
    recipe = catalog.load_recipe(image.family)
    headers = distribution_of(recipe.families).headers_of(source.kernel)
    packages = catalog.built_packages(source, recipe, headers)
    argv = ["mmdebstrap", "--variant=apt", "--format=tar", '--aptopt=APT::Install-Recommends "0"']
    argv += [f"--dpkgopt=path-exclude=/usr/share/{which}/*" for which in ("doc", "man")]
    took, _ = world.run([*argv, f"--include={','.join(packages)}", source.suite, os.devnull])
    return took


def _boot(world: World) -> float:
    _, document = world.run_json("up")
    world.kmlab("down")
    base = paths.bases() / str(document["guests"][0]["base"])
    folder = world.folder / "boot"
    folder.mkdir()
    arch = os.uname().machine
    firmware = installed_firmware(arch)
    shutil.copyfile(firmware.variables, folder / "vars")
    overlay: list[str | Path] = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        base / "disk.qcow2",
        folder / "disk",
    ]
    world.run(overlay)
    flash, accel = "if=pflash,format=raw,file=", document["guests"][0]["accel"]
    argv: list[str | Path] = [
        f"qemu-system-{arch}",
        "-machine",
        firmware.machine,
        "-accel",
        accel,
    ]
    argv += ["-cpu", "max", "-smp", "2", "-m", "1G", "-display", "none", "-serial", "null", "-nic", "user,model=virtio"]
    argv += ["-drive", f"{flash}{firmware.code},readonly=on", "-drive", f"{flash}{folder / 'vars'}"]
    argv += ["-drive", f"if=virtio,format=qcow2,cache=unsafe,file={folder / 'disk'}", "-device", "virtio-serial"]
    argv += ["-chardev", f"file,id=login,path={folder / 'login'}", "-device", "virtconsole,chardev=login"]
    began = time.perf_counter()
    guest = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        while not (folder / "login").exists() or _PROMPT not in (folder / "login").read_bytes():
            if guest.poll() is not None or time.perf_counter() - began > _PATIENCE:
                raise RuntimeError("the base did not boot to its login prompt")
            time.sleep(0.02)
        return time.perf_counter() - began
    finally:
        guest.kill()
        guest.wait()
        shutil.rmtree(folder)


FIGURES = (
    Figure(
        name="first start, empty cache",
        what="kmlab up with an empty cache",
        companion="mmdebstrap of the same packages + one boot",
        target=1.6,
        ours=first_up,
        theirs=unpack_and_boot,
        rounds=1,
    ),
)
