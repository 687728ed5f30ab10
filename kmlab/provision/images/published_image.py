"""A downloaded image: verified in a temporary place before anything reads it, then published whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kmlab.common import paths
from kmlab.common.errors import ImageError, KmlabError
from kmlab.common.events import Deadline, EventSink, Note, Stage
from kmlab.config import catalog
from kmlab.host.disk import disks
from kmlab.host.net import download, gpgv
from kmlab.host.process import locks
from kmlab.provision.images.trust import Expected, digest_in, expected, kind_of
from kmlab.provision.plan.artifact import LOCK_PATIENCE, check, record
from kmlab.provision.plan.source import Own, Published
from kmlab.virt import qcow2

_PATIENCE = 4 * 3600.0
_LIMIT = 16 << 30
"""Bytes of an image file; a publisher's are well below 2 GiB."""


def published_image(wanted: Published, report: EventSink, *, refresh: bool = False) -> Path:
    """The image of a publisher; from the cache, unless `refresh` wants what is published today."""
    with _remembering(wanted.name, wanted.arch, wanted.said, report) as memory:
        if memory.folder is None or refresh:
            deadline = Deadline(_PATIENCE)
            wants = expected(wanted, report, deadline)
            memory.folder = _folder(wanted.name, wanted.arch, wants.digest)
            if not (memory.folder / "image.json").exists():
                with _brought(wants.url, wants.digest, wanted.name, report, deadline) as half:
                    _publish(half, memory.folder, wanted.name, wanted.arch, wants, raw=False)
            if wants.signed is not None:
                memory.signed = max(wants.signed, memory.signed or 0)
        return _checked(memory.folder)


def own_image(wanted: Own, report: EventSink, *, refresh: bool = False) -> Path:
    """An image by its URL or its path; copied into the cache, so that what stands on it stays the same.

    `refresh` fetches one that has no digest once more.
    """
    with _remembering(wanted.name, wanted.arch, _said(wanted), report) as memory:
        if memory.folder is None or (refresh and wanted.digest is None):
            with _copied(wanted, report) if wanted.path is not None else _downloaded(wanted, report) as half:
                digest = wanted.digest or disks.digest(half)
                memory.folder = _folder(wanted.name, wanted.arch, digest)
                if not (memory.folder / "image.json").exists():
                    by = "the digest in lab.yaml" if wanted.digest else "its place alone"
                    about = Expected(url=wanted.url or str(wanted.path), digest=digest, by=by)
                    _publish(half, memory.folder, wanted.name, wanted.arch, about, raw=wanted.digest is not None)
        return _checked(memory.folder)


def _said(wanted: Own) -> str:
    """A name for what an image is taken from; a file that changed is another one."""
    if wanted.path is None:
        return paths.digest_of(wanted.url, wanted.digest)
    try:
        status = wanted.path.stat()
    except OSError as error:
        raise ImageError(f"{wanted.path}: {error.strerror}", "lab.yaml names it as an image") from None
    return paths.digest_of(str(wanted.path), status.st_size, status.st_mtime_ns, status.st_ino, wanted.digest)


@dataclass(slots=True)
class _Memory:
    """Which folder of the cache an image is in, and how old its publisher's word was; kept in the state."""

    folder: Path | None
    signed: int | None


@contextlib.contextmanager
def _remembering(name: str, arch: str, said: str, report: EventSink) -> Iterator[_Memory]:
    """What is known of an image that was asked for in the same words before; nobody else fetches it meanwhile."""
    path = paths.pull_record(name, arch)
    with locks.held(paths.downloads() / f"{name}-{arch}.lock", name, report, Deadline(LOCK_PATIENCE)):
        known = paths.read_json(path)
        memory = _Memory(None, None)
        if isinstance(known, dict):
            memory.signed = known.get("signed")
            folder = paths.images() / Path(str(known.get("folder"))).name
            if known.get("said") == said and (folder / "image.json").exists():
                memory.folder = folder
        yield memory
        if memory.folder is not None:
            about = {"said": said, "folder": memory.folder.name, "signed": memory.signed}
            if about != known:
                paths.write_json(path, about)


@contextlib.contextmanager
def _copied(wanted: Own, report: EventSink) -> Iterator[Path]:
    assert wanted.path is not None
    paths.require_space(paths.images(), wanted.path.stat().st_size, f"the image {wanted.path}")
    half = paths.make_folder(paths.downloads()) / f"{wanted.name}-{wanted.arch}.copy"
    try:
        with Stage(report, wanted.name, "copying the image into the cache") as stage:
            shutil.copyfile(wanted.path, half)
            found = _digest(half, wanted.digest, stage)
            if wanted.digest is not None and found != wanted.digest:
                raise _altered(str(wanted.path), found, wanted.digest)
        yield half
    finally:
        half.unlink(missing_ok=True)


@contextlib.contextmanager
def _downloaded(wanted: Own, report: EventSink) -> Iterator[Path]:
    assert wanted.url is not None
    if wanted.digest is None:
        if not wanted.url.startswith("https://"):
            raise ImageError(f"{wanted.url}: neither https nor a digest says whose bytes these are", "add `sha256: …`")
        report(Note(wanted.name, "nobody vouches for this image: lab.yaml says `unverified: true`"))
    with _brought(wanted.url, wanted.digest, wanted.name, report, Deadline(_PATIENCE)) as half:
        yield half


def vouched_for(folder: Path, beside: Path | None) -> str | None:
    """What is wrong with what vouches for a cached image: its publisher's signature, and the digest that it is over.

    None where all is well, or where there is no signature to be looked at again.
    """
    about = paths.read_json(folder / "image.json")
    if not isinstance(about, dict) or "digest" not in about or not (folder / "sums").exists():
        return None
    try:
        publisher = catalog.load_image(str(about["name"]), beside).publisher
        if publisher is None or publisher.key is None:
            return "the catalogue has no key for it any more"
        key = catalog.load_key(publisher.key, beside)
        sums, signature = (folder / "sums").read_bytes(), (folder / "sums.signature").read_bytes()
        gpgv.verify(sums, signature, key.keyring, key.fingerprint, "sums")
        wanted = digest_in(sums, PurePosixPath(str(about["url"])).name, "sums")
        found = disks.digest(folder / "disk.qcow2", kind=kind_of(wanted))
    except KmlabError as error:
        return error.message
    return None if found == wanted else "not the image that its publisher signed"


def remove_downloads() -> int:
    """Remove what lies half downloaded and is not being downloaded now; the bytes that it took."""
    freed = 0
    for file in list(paths.downloads().iterdir()) if paths.downloads().is_dir() else []:
        if file.suffix == ".lock" or (
            file.with_suffix(".lock").exists() and not locks.is_free(file.with_suffix(".lock"))
        ):
            continue
        freed += file.lstat().st_blocks * 512
        file.unlink(missing_ok=True)
    return freed


@contextlib.contextmanager
def _brought(url: str, digest: str | None, subject: str, report: EventSink, deadline: Deadline) -> Iterator[Path]:
    """A file with that digest, in a temporary place that outlives a broken download and nothing else."""
    key = digest[:32] if digest else paths.digest_of(url)
    half = paths.make_folder(paths.downloads()) / f"{key}.part"
    with (
        locks.held(half.with_suffix(".lock"), subject, report, Deadline(LOCK_PATIENCE)),
        Stage(report, subject, f"downloading {url}") as stage,
    ):

        def progress(done: int, total: int | None) -> None:
            of = f" of {total / 2**20:.0f}" if total else ""
            rate = f", {done / 2**20 / stage.seconds:.0f} MiB/s" if stage.seconds > 1 else ""
            stage.progress(done, total, "B", f"{done / 2**20:.0f}{of} MiB{rate}")

        paths.require_space(half.parent, 1 << 30, f"downloading image '{subject}'")
        try:
            resumed = download.fetch(url, half, deadline, limit=_LIMIT, progress=progress)
        except OSError as error:
            # What is kept for the next try would keep the disk full.
            _discard(half)
            raise (paths.disk_full_error(error) or error) from None
        found = _digest(half, digest, stage)
        if digest is not None and found != digest and resumed:
            # What was there before may be of another file: once more, from the beginning.
            _discard(half)
            download.fetch(url, half, deadline, limit=_LIMIT, progress=progress)
            found = _digest(half, digest, stage)
        if digest is not None and found != digest:
            _discard(half)
            raise _altered(url, found, digest)
        stage.detail = f"{half.stat().st_size / 2**20:.0f} MiB"
        try:
            yield half
        finally:
            _discard(half)


def _digest(half: Path, wanted: str | None, stage: Stage) -> str:
    stage.progress(detail="verifying")
    return disks.digest(half, kind=kind_of(wanted) if wanted else "sha256")


def _discard(half: Path) -> None:
    half.unlink(missing_ok=True)
    half.with_name(f"{half.name}.json").unlink(missing_ok=True)


def _publish(half: Path, final: Path, name: str, arch: str, about: Expected, *, raw: bool) -> None:
    """Put a verified file into the cache, once its header has been looked at."""
    with half.open("rb") as file:
        head = file.read(qcow2.HEAD)
    is_raw = raw and head[:4] != qcow2.MAGIC
    size = half.stat().st_size
    virtual = size if is_raw else qcow2.check(head, size, about.url).virtual_size
    lock = paths.work() / f"{final.name}.lock"
    with (
        locks.held(lock, name, lambda _: None, Deadline(LOCK_PATIENCE)),
        paths.published(final, paths.work()) as folder,
    ):
        target = folder / "disk.qcow2"
        if is_raw:
            disks.convert_raw(half, target, Deadline(_PATIENCE))
        else:
            os.replace(half, target)
        facts = {"name": name, "arch": arch, "url": about.url, "digest": about.digest, "by": about.by}
        if about.sums:
            (folder / "sums").write_bytes(about.sums)
            (folder / "sums.signature").write_bytes(about.signature)
        record(folder / "image.json", target, {**facts, "virtual_size": str(virtual)})


def _checked(folder: Path) -> Path:
    check(folder / "image.json", folder / "disk.qcow2")
    return folder / "disk.qcow2"


def _folder(name: str, arch: str, digest: str) -> Path:
    return paths.images() / f"{name}-{arch}-{digest[:16]}"


def _altered(what: str, found: str, wanted: str) -> ImageError:
    return ImageError(
        f"{what}: altered or cut short: its digest is {found[:16]}… and must be {wanted[:16]}…",
        "it was removed; is this the publisher's own server, or a mirror that is up to date?",
    )
