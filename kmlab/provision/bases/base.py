"""The base: an image that is a guest that builds modules.

One that was built here from packages is that already, unless a guest asks for more; any other is booted once with a
seed that makes it one.
"""

from __future__ import annotations

import dataclasses
import re
import time
from dataclasses import dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import LabError
from kmlab.common.events import Deadline, EventSink, Note, Stage, printable
from kmlab.config import catalog
from kmlab.host import Host
from kmlab.host.disk import disks
from kmlab.host.hypervisor import hypervisor
from kmlab.host.packages import debs
from kmlab.host.process import locks
from kmlab.provision.images.archive_kernel import OWN, asked_for, ensure_kernel
from kmlab.provision.images.image import ensure_image
from kmlab.provision.plan.artifact import (
    LOCK_PATIENCE,
    boot_twice,
    booted,
    check,
    last_line,
    read_console,
    record,
    require_disk_space,
    require_firmware_output,
    require_no_panic,
    sweep_key,
)
from kmlab.provision.plan.plan import Plan
from kmlab.provision.plan.source import PackageImageSource
from kmlab.virt import cloudinit, firmware, qcow2
from kmlab.virt.domain import Domain

BASE_FORMAT = 3
ROOM = 8 << 30
"""Bytes of a guest's disk on a published image, which has room for itself and little else."""
_CLOUD_INIT_ENDS = re.compile(r"Cloud-init v\. \S+ finished at [^\r\n]*")
_CLOUD_INIT_SAYS = re.compile(r"cloud-init\[\d+\]: (?P<what>.*\[(?:WARNING|ERROR|CRITICAL)\]: .*)")
_BAKE_PATIENCE = 900.0


@dataclass(frozen=True, slots=True)
class Base:
    """An image plus a recipe, baked."""

    key: str
    release: str
    """Of its kernel."""
    host_key: str
    """The public half, as its sshd shows it."""

    @property
    def folder(self) -> Path:
        return paths.bases() / self.key


def ensure_base(host: Host, wanted: Plan, report: EventSink) -> Base:
    """The base of this guest, made when it is not there."""
    image = ensure_image(host, wanted, report)
    key = base_key(wanted, image)
    folder = paths.bases() / key
    with locks.held(paths.work() / f"base-{key}.lock", wanted.spec.name, report, Deadline(LOCK_PATIENCE)):
        if not (folder / "base.json").exists():
            paths.require_space(paths.bases(), 2 << 30, f"baking the base of '{wanted.spec.name}'")
            ready = _is_ready(wanted)
            first_boot = "baking the base: a first boot that installs what builds need"
            with Stage(report, wanted.spec.name, "taking the image as its base" if ready else first_boot) as stage:
                sweep_key(key)

                def make() -> str:
                    with paths.published(folder, paths.work()) as half:
                        facts = _taken(wanted, image, half) if ready else _bake(host, wanted, image, half, stage)
                        said = {**facts, "image": image.parent.name}
                        record(half / "base.json", half / "disk.qcow2", said)
                        for made in ("disk.qcow2", "nvram.fd"):
                            disks.freeze(half / made)
                    return said["release"]

                stage.detail = f"kernel {boot_twice(make, wanted.spec.name, report)}"
        known = check(folder / "base.json", folder / "disk.qcow2")
    return Base(key, str(known["release"]), str(known["host_key"]))


def base_key(wanted: Plan, image: Path) -> str:
    """The name of a base: everything that went in."""
    spec = wanted.spec
    return paths.digest_of(
        BASE_FORMAT,
        image.parent.name,
        _of_image(wanted, image),
        # What is done to a booted base makes its checkpoint, and nothing else.
        dataclasses.asdict(dataclasses.replace(wanted.recipe, idle="")),
        asked_for(wanted),
        spec.cmdline,
        spec.packages,
        wanted.public_key,
        *([spec.disk] if spec.disk is not None else []),
    )


def _of_image(wanted: Plan, image: Path) -> object:
    """What makes an image what it is; a published one is the same whenever and from wherever it was fetched."""
    about = paths.read_json(image.parent / "image.json")
    return about if isinstance(wanted.source, PackageImageSource) else about["sha256"]


def _is_ready(wanted: Plan) -> bool:
    """Whether the image is already all that the guest's base is to be."""
    spec, recipe = wanted.spec, wanted.recipe
    if not isinstance(wanted.source, PackageImageSource) or recipe.first_boot:
        return False
    used = catalog.load_recipe(wanted.source.family, wanted.lab.folder)
    has = catalog.built_packages(wanted.source.packages, used)
    asks = spec.cmdline or spec.disk is not None or spec.kernel not in OWN or not set(spec.packages) <= set(has)
    # Which of the optional packages the archive has is found out in a first boot.
    return recipe == used and not recipe.optional and not asks


def _taken(wanted: Plan, image: Path, folder: Path) -> dict[str, str]:
    """The base of an image that is ready: nothing on top of it. What was said of it when it was built."""
    disks.make_overlay(folder / "disk.qcow2", image, Deadline(_BAKE_PATIENCE))
    disks.copy(wanted.baking.variables, folder / "nvram.fd")
    about = paths.read_json(image.parent / "image.json")
    return {fact: about[fact] for fact in ("release", "host_key")}


def _bake(host: Host, wanted: Plan, image: Path, folder: Path, stage: Stage) -> dict[str, str]:
    """Boot the image once with a seed that makes it a base; what it said of itself."""
    kernel = ensure_kernel(host, wanted, image, folder, stage)
    deadline = Deadline(_BAKE_PATIENCE * wanted.patience)
    seed = folder / "seed.iso"
    values = {
        "KERNEL": [kernel.release],
        "PACKAGES": [*wanted.recipe.packages, *wanted.spec.packages],
        "OPTIONAL": wanted.recipe.optional,
        "HEADERS": [wanted.recipe.headers],
        "EXACT": ["yes"] if wanted.spec.kernel == "exact" else [],
        "CMDLINE": [*wanted.recipe.cmdline.split(), *wanted.spec.cmdline.split()],
    }
    files = cloudinit.seed_files(
        wanted.recipe.user_data,
        script=catalog.insert_configure(wanted.recipe.bake, wanted.recipe),
        values=values,
        authorized_key=wanted.public_key,
        instance=folder.name,
    )
    for deb in kernel.debs:
        debs.expand(deb, deadline)
    disks.make_seed(seed, {**files, **{f"{number}.deb": path for number, path in enumerate(kernel.debs)}})
    for deb in kernel.debs:
        deb.unlink()
    disks.make_overlay(folder / "disk.qcow2", image, deadline, disk_size(wanted, image))
    disks.copy(wanted.baking.variables, folder / "nvram.fd")
    domain = wanted.domain(folder, seed)
    with booted(host, wanted, domain, folder, deadline) as hv:
        said = _watch_bake(wanted, domain, folder, hv, stage, deadline)
    for scratch in (seed, folder / "console.log"):
        scratch.unlink(missing_ok=True)
    return said


def disk_size(wanted: Plan, image: Path) -> int | None:
    """Bytes that a guest's disk is grown to; cloud-init grows the root on it. None: as large as the image."""
    with image.open("rb") as file:
        has = qcow2.check(file.read(qcow2.HEAD), image.stat().st_size, str(image)).virtual_size
    if wanted.spec.disk is None:
        return None if isinstance(wanted.source, PackageImageSource) else max(has, ROOM)
    if wanted.spec.disk < has:
        raise wanted.lab.error(
            ("guests", wanted.spec.name, "disk"),
            f"the image is larger than that: {has / 2**30:.1f} GiB",
            "leave it out",
        )
    return wanted.spec.disk


def _watch_bake(
    wanted: Plan, domain: Domain, folder: Path, hv: hypervisor.Hypervisor, stage: Stage, deadline: Deadline
) -> dict[str, str]:
    said: dict[str, str] = {}
    notes: list[str] = []
    silent_until = Deadline(firmware.FIRST_LINE_SECONDS * wanted.patience)
    while True:
        console = read_console(folder / "console.log")
        for line in console.splitlines():
            _, found, words = line.partition("kmlab-bake: ")
            if found:
                what, _, rest = words.strip().partition(" ")
                said[what] = rest
        notes = _notes(console)
        if "kernel" not in said and (end := _CLOUD_INIT_ENDS.search(console)):
            why = notes[0] if notes else printable(end[0], 200)
            raise LabError(
                f"guest '{wanted.spec.name}': cloud-init ended before the base was baked: {why}",
                f"its whole console: {paths.failed_boot()}",
            )
        if "error" in said:
            newer = "without `kernel: exact` a newer kernel is taken; " if "`kernel: exact`" in said["error"] else ""
            raise LabError(
                f"guest '{wanted.spec.name}' could not be baked: {printable(said['error'], 300)}",
                f"{newer}its whole console: {paths.failed_boot()}",
            )
        require_no_panic(wanted, console)
        require_disk_space(wanted)
        if not hv.runs(domain.name):
            break
        stage.progress(detail=last_line(console))
        if silent_until.passed:
            require_firmware_output(wanted, wanted.baking, console)
        if deadline.passed:
            raise LabError(
                f"guest '{wanted.spec.name}' was not baked within {deadline.seconds:.0f} s; "
                f"last console line: '{last_line(console)}'"
            )
        time.sleep(0.3)
    if "done" not in said or "hostkey" not in said:
        raise LabError(
            f"guest '{wanted.spec.name}' stopped before its base was baked; last console line: '{last_line(console)}'"
        )
    for note in notes:
        stage.report(Note(wanted.spec.name, note))
    return {"release": said["done"], "host_key": " ".join(said["hostkey"].split()[:2])}


def _notes(console: str) -> list[str]:
    """What a person should know of a first boot: the script's own notes, and what cloud-init complained about."""
    found = []
    for line in console.splitlines():
        _, _, note = line.partition("kmlab-bake: note ")
        complaint = _CLOUD_INIT_SAYS.search(line)
        if complaint:
            note = f"cloud-init: {complaint['what']}"
        if note:
            found.append(printable(note.strip(), 200))
    return list(dict.fromkeys(found))[:10]
