"""What lies in the cache and in a lab's state, looked at without starting or locking anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
from kmlab.provision.images.published_image import remove_downloads, vouched_for

_RECORDS = {"images": "image.json", "bases": "base.json", "checkpoints": "checkpoint.json"}
_FILES = {"images": "disk.qcow2", "bases": "disk.qcow2", "checkpoints": "memory"}


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """One guest as it is now."""

    name: str
    files: paths.GuestFiles
    record: GuestRecord | None
    running: bool
    in_use: bool
    """Another kmlab works in it at this moment."""

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
    """The one that is taken where nobody says which."""
    cached: int
    """Bytes on disk; 0 if it is not in the cache."""
    trust: str
    """What vouches for it: packages, signature, digest, or nothing."""
    serial: str | None
    """The release that the catalogue pins, of one that is downloaded."""


def guest_status(lab: Lab, name: str) -> GuestStatus:
    """How a guest is, from the host's files and processes alone."""
    files = lifecycle.lab_files(lab).guest(name)
    record = read_record(files)
    running = record is not None and record.pid is not None and hypervisor.alive(record.pid, files.root)
    return GuestStatus(name, files, record, running, files.lock.exists() and not locks.is_free(files.lock))


def guest_names(lab: Lab) -> list[str]:
    """The lab's guests, and those of a matrix that run."""
    others = [name for name in lifecycle.lab_files(lab).guests() if name not in lab.guests]
    return [*lab.guests, *(name for name in others if guest_status(lab, name).running)]


def listed(beside: Path | None) -> list[ListedImage]:
    """The whole catalogue."""
    found = []
    for name in catalog.image_names(beside):
        image = catalog.load_image(name, beside)
        mine = [folder for arch in image.architectures for folder in paths.images().glob(f"{name}-{arch}-*")]
        size = sum(disks.size_on_disk(folder) for folder in mine)
        arch = lifecycle.arch_of(None, tuple(image.architectures))
        entry = image.architectures[arch]
        pin = entry.download.pin if entry.download else None
        trust = "packages"
        if image.publisher is not None:
            trust = "signature" if image.publisher.key else "digest" if pin else "nothing"
        serial = pin.serial if pin else None
        about = (name, image.family, image.release, tuple(image.architectures), arch, size, trust, serial)
        found.append(ListedImage(*about))
    return found


def verify(report: EventSink, beside: Path | None) -> list[tuple[str, str | None]]:
    """Every cached thing and what is wrong with it, having read all of its bytes."""
    found: list[tuple[str, str | None]] = []
    for kind, folder in _things():
        name = f"{kind}/{folder.name}"
        with Stage(report, folder.name, "verifying"):
            known = paths.read_json(folder / _RECORDS[kind])
            try:
                lifecycle.check(folder / _RECORDS[kind], folder / _FILES[kind])
            except ImageError as error:
                found.append((name, error.message))
                continue
            same = disks.digest(folder / _FILES[kind]) == known["sha256"]
            problem = None if same else "altered since it was made"
            if problem is None and kind == "images":
                problem = vouched_for(folder, beside)
            found.append((name, problem))
    return found


def prune() -> tuple[list[str], int]:
    """Remove what no guest of any lab stands on, and what was left half-made; names and bytes."""
    lifecycle.sweep()
    lifecycle.sweep_toolchains()
    freed = remove_downloads()
    records = [paths.read_json(path) for path in (paths.state_home() / "labs").glob("*/*/guest.json")]
    used = {record[key] for record in records if isinstance(record, dict) for key in ("base", "checkpoint")}
    removed = []
    for kind, folder in _things():
        if kind == "images" or folder.name in used:
            continue
        lock = paths.work() / f"{kind.removesuffix('s')}-{folder.name}.lock"
        if lock.exists() and not locks.is_free(lock):
            continue
        freed += disks.size_on_disk(folder)
        paths.remove_tree(folder)
        removed.append(f"{kind}/{folder.name}")
    for folder in list(paths.toolchains().iterdir()) if paths.toolchains().is_dir() else []:
        lock = paths.work() / f"toolchain-{folder.name}.lock"
        if folder.name not in used and (not lock.exists() or locks.is_free(lock)):
            freed += disks.size_on_disk(folder)
            paths.remove_tree(folder)
            removed.append(f"toolchains/{folder.name}")
    # An archive's indexes serve whoever looks up the next kernel, and are soon there again.
    for folder in list(paths.archives().iterdir()) if paths.archives().is_dir() else []:
        lock = paths.work() / f"archive-{folder.name}.lock"
        if not lock.exists() or locks.is_free(lock):
            freed += disks.size_on_disk(folder)
            paths.remove_tree(folder)
            removed.append(f"archives/{folder.name}")
    standing = {str(path) for path in _images_in_use()}
    for folder in list(paths.images().iterdir()) if paths.images().is_dir() else []:
        if str(folder) not in standing:
            freed += disks.size_on_disk(folder)
            paths.remove_tree(folder)
            removed.append(f"images/{folder.name}")
    return removed, freed


def _images_in_use() -> list[Path]:
    records = [paths.read_json(path) for path in paths.bases().glob("*/base.json")]
    return [paths.images() / record["image"] for record in records if isinstance(record, dict) and "image" in record]


def _things() -> list[tuple[str, Path]]:
    homes = {"images": paths.images(), "bases": paths.bases(), "checkpoints": paths.checkpoints()}
    return [
        (kind, folder)
        for kind, home in homes.items()
        if home.is_dir()
        for folder in sorted(home.iterdir())
        if folder.is_dir()
    ]
