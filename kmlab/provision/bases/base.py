"""Make the base: an image that can build modules as a guest.

An image that was built here from packages is usually ready. Any other image is booted once with a seed that installs
what is missing.
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
from kmlab.host.process import locks
from kmlab.provision.images.archive_kernel import IMAGE_KERNELS, ensure_kernel, kernel_identity
from kmlab.provision.images.image import ensure_image
from kmlab.provision.images.local_kernel import BuiltKernel
from kmlab.provision.plan.artifact import (
    LOCK_PATIENCE,
    boot_twice,
    booted,
    check_artifact,
    last_line,
    read_console,
    record_artifact,
    require_disk_space,
    require_firmware_output,
    require_no_panic,
    sweep_key,
)
from kmlab.provision.plan.plan import Plan, recipe_for
from kmlab.provision.plan.source import PackageImageSource
from kmlab.virt import cloudinit, firmware, qcow2
from kmlab.virt.domain import Domain

BASE_FORMAT = 3
MIN_DISK = 8 << 30
"""The smallest guest disk for a published image, in bytes, because such an image has little free space."""
_CLOUD_INIT_FINISHED = re.compile(r"Cloud-init v\. \S+ finished at [^\r\n]*")
_CLOUD_INIT_WARNING = re.compile(r"cloud-init\[\d+\]: (?P<what>.*\[(?:WARNING|ERROR|CRITICAL)\]: .*)")
_BAKE_PATIENCE = 900.0


@dataclass(frozen=True, slots=True)
class Base:
    """An image with its recipe applied."""

    key: str
    release: str
    """The release of its kernel."""
    host_key: str
    """The public half of its ssh host key."""

    @property
    def folder(self) -> Path:
        return paths.bases() / self.key


def ensure_base(host: Host, plan: Plan, report: EventSink) -> Base:
    """Return the base of this guest. Make it if it does not exist."""
    image = ensure_image(host, plan, report)
    key = base_key(plan, image)
    folder = paths.bases() / key
    with locks.held(paths.work() / f"base-{key}.lock", plan.spec.name, report, Deadline(LOCK_PATIENCE)):
        if not (folder / "base.json").exists():
            paths.require_space(paths.bases(), 2 << 30, f"baking the base of '{plan.spec.name}'")
            ready = _image_is_base(plan)
            first_boot = "baking the base: a first boot that installs what builds need"
            with Stage(report, plan.spec.name, "taking the image as its base" if ready else first_boot) as stage:
                sweep_key(key)

                def make() -> str:
                    with paths.atomic_folder(folder, paths.work()) as scratch:
                        facts = (
                            _base_from_image(plan, image, scratch)
                            if ready
                            else _bake(host, plan, image, scratch, stage)
                        )
                        facts = {**facts, "image": image.parent.name, "kernel": _built_kernel(plan)}
                        others = [scratch / "nvram.fd"]
                        record_artifact(scratch / "base.json", scratch / "disk.qcow2", facts, others)
                    return facts["release"]

                stage.detail = f"kernel {boot_twice(make, plan.spec.name, report)}"
        about = check_artifact(folder / "base.json", folder / "disk.qcow2")
    return Base(key, str(about["release"]), str(about["host_key"]))


def base_key(plan: Plan, image: Path) -> str:
    """Return the key of a base: a digest of all its inputs."""
    spec = plan.spec
    # `idle` runs in the booted base, so only the checkpoint depends on it. `families` only chooses the distribution.
    recipe = dataclasses.asdict(dataclasses.replace(plan.recipe, idle=""))
    del recipe["families"]
    return paths.digest_of(
        BASE_FORMAT,
        image.parent.name,
        _image_identity(plan, image),
        recipe,
        kernel_identity(plan),
        spec.cmdline,
        spec.packages,
        plan.public_key,
        *([spec.disk] if spec.disk is not None else []),
    )


def _image_identity(plan: Plan, image: Path) -> object:
    """Return what identifies an image; for a published image only its content, not its source."""
    about = paths.read_json(image.parent / "image.json")
    return about if isinstance(plan.source, PackageImageSource) else about["sha256"]


def _built_kernel(plan: Plan) -> str:
    """Return the key of the kernel if kmlab built it."""
    kernel = plan.spec.kernel
    return kernel.key if isinstance(kernel, BuiltKernel) else ""


def _image_is_base(plan: Plan) -> bool:
    """Return whether the image can be the guest's base without a first boot."""
    spec, recipe = plan.spec, plan.recipe
    if not isinstance(plan.source, PackageImageSource) or recipe.first_boot:
        return False
    image_recipe = recipe_for(plan.source.family, plan.lab.folder, plan.arch)
    headers = plan.distribution.headers_of(plan.source.packages.kernel)
    image_packages = catalog.built_packages(plan.source.packages, image_recipe, headers)
    needs_more = (
        spec.cmdline
        or spec.disk is not None
        or spec.kernel not in IMAGE_KERNELS
        or not set(spec.packages) <= set(image_packages)
    )
    # Only a first boot finds out which optional packages the archive has.
    return recipe == image_recipe and not recipe.optional and not needs_more


def _base_from_image(plan: Plan, image: Path, folder: Path) -> dict[str, str]:
    """Make a base of an image that is ready: an empty overlay. Return the facts of the image's build."""
    disks.make_overlay(folder / "disk.qcow2", image, Deadline(_BAKE_PATIENCE))
    disks.copy(plan.baking.variables, folder / "nvram.fd")
    about = paths.read_json(image.parent / "image.json")
    return {fact: about[fact] for fact in ("release", "host_key")}


def _bake(host: Host, plan: Plan, image: Path, folder: Path, stage: Stage) -> dict[str, str]:
    """Boot the image once with a seed that turns it into a base. Return the facts that the guest reported."""
    kernel = ensure_kernel(host, plan, image, folder, stage)
    deadline = Deadline(_BAKE_PATIENCE * plan.patience)
    seed = folder / "seed.iso"
    values = {
        "KERNEL": [kernel.release],
        "PACKAGES": [*plan.recipe.packages, *plan.spec.packages],
        "OPTIONAL": plan.recipe.optional,
        "HEADERS": [plan.recipe.headers],
        "EXACT": ["yes"] if plan.spec.kernel == "exact" else [],
        "CMDLINE": [*plan.recipe.cmdline.split(), *plan.spec.cmdline.split()],
    }
    files = cloudinit.seed_files(
        plan.recipe.user_data,
        script=catalog.insert_configure(plan.recipe.bake, plan.recipe),
        values=values,
        authorized_key=plan.public_key,
        instance=folder.name,
    )
    for package in kernel.packages:
        plan.distribution.prepare_package(package, deadline)
    packages = {f"{number}{plan.distribution.package_suffix}": path for number, path in enumerate(kernel.packages)}
    disks.make_seed(seed, {**files, **packages})
    for package in kernel.packages:
        package.unlink()
    disks.make_overlay(folder / "disk.qcow2", image, deadline, disk_size(plan, image))
    disks.copy(plan.baking.variables, folder / "nvram.fd")
    domain = plan.domain(folder, seed)
    with booted(host, plan, domain, folder, deadline) as hv:
        facts = _watch_bake(plan, domain, folder, hv, stage, deadline)
    for scratch in (seed, folder / "console.log"):
        scratch.unlink(missing_ok=True)
    return facts


def disk_size(plan: Plan, image: Path) -> int | None:
    """Return the size of a guest's disk in bytes; None means the image's size. cloud-init grows the root to it."""
    with image.open("rb") as file:
        image_size = qcow2.check(file.read(qcow2.HEAD), image.stat().st_size, str(image)).virtual_size
    if plan.spec.disk is None:
        return None if isinstance(plan.source, PackageImageSource) else max(image_size, MIN_DISK)
    if plan.spec.disk < image_size:
        raise plan.lab.error(
            ("guests", plan.spec.name, "disk"),
            f"the disk is smaller than the image, which has {image_size / 2**30:.1f} GiB",
            "remove this key, or give a larger size",
        )
    return plan.spec.disk


def _watch_bake(
    plan: Plan, domain: Domain, folder: Path, hv: hypervisor.Hypervisor, stage: Stage, deadline: Deadline
) -> dict[str, str]:
    facts: dict[str, str] = {}
    notes: list[str] = []
    firmware_deadline = Deadline(firmware.FIRST_LINE_SECONDS * plan.patience)
    while True:
        console = read_console(folder / "console.log")
        for line in console.splitlines():
            _, separator, report = line.partition("kmlab-bake: ")
            if separator:
                what, _, value = report.strip().partition(" ")
                facts[what] = value
        notes = _notes(console)
        if "kernel" not in facts and (end := _CLOUD_INIT_FINISHED.search(console)):
            why = notes[0] if notes else printable(end[0], 200)
            raise LabError(
                f"guest '{plan.spec.name}': cloud-init ended before the base was baked: {why}",
                f"the console log: {paths.failed_boot()}",
            )
        if "error" in facts:
            newer = (
                "without `kernel: exact`, kmlab uses a newer kernel; " if "`kernel: exact`" in facts["error"] else ""
            )
            raise LabError(
                f"guest '{plan.spec.name}' could not be baked: {printable(facts['error'], 300)}",
                f"{newer}the console log: {paths.failed_boot()}",
            )
        require_no_panic(plan, console)
        require_disk_space(plan)
        if not hv.runs(domain.name):
            break
        stage.progress(detail=last_line(console))
        if firmware_deadline.passed:
            require_firmware_output(plan, plan.baking, console)
        if deadline.passed:
            raise LabError(
                f"guest '{plan.spec.name}' was not baked within {deadline.seconds:.0f} s; "
                f"last console line: '{last_line(console)}'"
            )
        time.sleep(0.3)
    if "done" not in facts or "hostkey" not in facts:
        raise LabError(
            f"guest '{plan.spec.name}' stopped before its base was baked; last console line: '{last_line(console)}'"
        )
    for note in notes:
        stage.report(Note(plan.spec.name, note))
    return {"release": facts["done"], "host_key": " ".join(facts["hostkey"].split()[:2])}


def _notes(console: str) -> list[str]:
    """Return the notes of a first boot: those of the script, and cloud-init's warnings; at most ten."""
    notes = []
    for line in console.splitlines():
        _, _, note = line.partition("kmlab-bake: note ")
        warning = _CLOUD_INIT_WARNING.search(line)
        if warning:
            note = f"cloud-init: {warning['what']}"
        if note:
            notes.append(printable(note.strip(), 200))
    return list(dict.fromkeys(notes))[:10]
