"""Report, verify and prune the cache and the state, without starting guests."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from kmlab import __version__
from kmlab.common import paths
from kmlab.common.errors import ImageError
from kmlab.common.events import EventSink, Stage
from kmlab.config import catalog
from kmlab.config.lab import Lab
from kmlab.host.disk import disks
from kmlab.host.hypervisor import hypervisor
from kmlab.host.process import locks
from kmlab.provision import lifecycle
from kmlab.provision.guest import GuestRecord, read_record
from kmlab.provision.images.published_image import check_signature, remove_downloads
from kmlab.provision.lease import leased
from kmlab.provision.plan.plan import guest_image_source, recipe_for

_FOLDERS = re.compile(r"(?<=Path\(')[^']*/")
"""The folders of paths, which differ from machine to machine."""
_RECORDS = {"images": "image.json", "bases": "base.json", "checkpoints": "checkpoint.json"}
_FILES = {"images": "disk.qcow2", "bases": "disk.qcow2", "checkpoints": "memory"}


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """The current status of one guest."""

    name: str
    files: paths.GuestFiles
    record: GuestRecord | None
    running: bool
    in_use: bool
    """Whether another kmlab uses it at this moment."""

    @property
    def state(self) -> str:
        if self.record is None or not self.running:
            return "stopped"
        if self.record.state == "busy":
            return "busy" if self.in_use else "dirty"
        return self.record.state


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One image of the catalogue."""

    name: str
    family: str
    release: str
    architectures: tuple[str, ...]
    architecture: str
    """The default architecture."""
    cached: int
    """Bytes on disk; 0 if it is not in the cache."""
    trust: str
    """How it is verified: packages, signature, digest, or nothing."""
    serial: str | None
    """The release that the catalogue pins; None for an image that is built."""


def guest_status(lab: Lab, name: str) -> GuestStatus:
    """Return the status of a guest, from the host's files and processes only."""
    files = lifecycle.lab_files(lab).guest(name)
    record = read_record(files)
    running = record is not None and record.pid is not None and hypervisor.alive(record.pid, files.root)
    return GuestStatus(name, files, record, running, files.lock.exists() and not locks.is_free(files.lock))


def guest_names(lab: Lab) -> list[str]:
    """Return the lab's guests, and the running guests of a matrix."""
    others = [name for name in lifecycle.lab_files(lab).guests() if name not in lab.guests]
    return [*lab.guests, *(name for name in others if guest_status(lab, name).running)]


def cache_key(lab: Lab) -> str:
    """Return a digest of what decides which images and bases the lab's guests have, apart from the archives' state.

    It does not depend on this machine, except for its architecture.
    """
    specs = {spec.name: spec for spec in (*lab.guests.values(), *lab.columns(lab.default, lab.matrix))}
    parts: list[object] = [__version__]
    for name in sorted(specs):
        spec = specs[name]
        image, source = guest_image_source(lab, spec)
        recipe = recipe_for(spec.recipe or image.family, lab.folder, source.arch)
        whole = [_FOLDERS.sub("", repr(each)) for each in (source, recipe, spec.kernel)]
        parts.append([*whole, sorted(spec.config), sorted(spec.packages)])
    return f"kmlab-{platform.machine()}-{paths.digest_of(*parts)}"


def cached_paths() -> list[Path]:
    """Return what a CI server should keep between jobs: the cache, and the ssh key that images are built for."""
    folders = (paths.images(), paths.bases(), paths.toolchains(), paths.kernels())
    return [*folders, paths.identity_key(), paths.identity_key().with_suffix(".pub")]


def list_images(lab_folder: Path | None) -> list[ListedImage]:
    """Return all images of the catalogue."""
    images = []
    for name in catalog.image_names(lab_folder):
        image = catalog.load_image(name, lab_folder)
        folders = [folder for arch in image.architectures for folder in paths.images().glob(f"{name}-{arch}-*")]
        size = sum(disks.size_on_disk(folder) for folder in folders)
        arch = lifecycle.arch_of(None, tuple(image.architectures))
        entry = image.architectures[arch]
        pin = entry.download.pin if entry.download else None
        trust = "packages"
        if image.publisher is not None:
            trust = "signature" if image.publisher.key else "digest" if pin else "nothing"
        serial = pin.serial if pin else None
        about = (name, image.family, image.release, tuple(image.architectures), arch, size, trust, serial)
        images.append(ListedImage(*about))
    return images


def verify(report: EventSink, lab_folder: Path | None) -> list[tuple[str, str | None]]:
    """Read all bytes of every artifact. Return each with its problem, or None if it is intact."""
    problems: list[tuple[str, str | None]] = []
    for kind, folder in _artifacts():
        name = f"{kind}/{folder.name}"
        with Stage(report, folder.name, "verifying"):
            try:
                lifecycle.check_artifact(folder / _RECORDS[kind], folder / _FILES[kind], every_byte=True)
            except ImageError as error:
                problems.append((name, error.message))
                continue
            problems.append((name, check_signature(folder, lab_folder) if kind == "images" else None))
    for folder in sorted(paths.toolchains().iterdir()) if paths.toolchains().is_dir() else []:
        with Stage(report, folder.name, "verifying"):
            problems.append((f"toolchains/{folder.name}", lifecycle.check_toolchain(folder, every_byte=True)))
    return problems


def prune() -> tuple[list[str], int]:
    """Remove artifacts that no guest uses, and incomplete ones. Return their names, and the freed bytes."""
    lifecycle.sweep()
    lifecycle.sweep_toolchains()
    freed = remove_downloads()
    records = [paths.read_json(path) for path in (paths.state_home() / "labs").glob("*/*/guest.json")]
    used = {record[key] for record in records if isinstance(record, dict) for key in ("base", "checkpoint")} | leased()
    removed = []
    for kind, folder in _artifacts():
        if kind == "images" or folder.name in used:
            continue
        lock = paths.work() / f"{kind.removesuffix('s')}-{folder.name}.lock"
        if lock.exists() and not locks.is_free(lock):
            continue
        size = disks.size_on_disk(folder)
        with locks.exclusive(lifecycle.readers_lock(folder.name)) as unread:
            if not unread or folder.name in leased() or hypervisor.processes_reading(folder):
                continue
            paths.remove_tree(folder)
        freed += size
        removed.append(f"{kind}/{folder.name}")
    for folder in list(paths.toolchains().iterdir()) if paths.toolchains().is_dir() else []:
        lock = paths.work() / f"toolchain-{folder.name}.lock"
        if folder.name not in used and (not lock.exists() or locks.is_free(lock)):
            freed += disks.size_on_disk(folder)
            paths.remove_tree(folder)
            removed.append(f"toolchains/{folder.name}")
    # apt's indexes are only used to look up kernels, and can be fetched again quickly.
    for folder in list(paths.archives().iterdir()) if paths.archives().is_dir() else []:
        lock = paths.work() / f"archive-{folder.name}.lock"
        if not lock.exists() or locks.is_free(lock):
            freed += disks.size_on_disk(folder)
            paths.remove_tree(folder)
            removed.append(f"archives/{folder.name}")
    in_use = {str(path) for path in _images_in_use()}
    for folder in list(paths.images().iterdir()) if paths.images().is_dir() else []:
        if str(folder) not in in_use:
            freed += disks.size_on_disk(folder)
            paths.remove_tree(folder)
            removed.append(f"images/{folder.name}")
    return removed, freed


def _images_in_use() -> list[Path]:
    records = [paths.read_json(path) for path in paths.bases().glob("*/base.json")]
    return [paths.images() / record["image"] for record in records if isinstance(record, dict) and "image" in record]


def _artifacts() -> list[tuple[str, Path]]:
    homes = {"images": paths.images(), "bases": paths.bases(), "checkpoints": paths.checkpoints()}
    return [
        (kind, folder)
        for kind, home in homes.items()
        if home.is_dir()
        for folder in sorted(home.iterdir())
        if folder.is_dir()
    ]
