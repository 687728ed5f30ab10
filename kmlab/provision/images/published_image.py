"""Download an image, verify it before anything reads it, and add it to the cache atomically."""

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
from kmlab.provision.images.trust import ExpectedImage, digest_in, expected_image, kind_of
from kmlab.provision.plan.artifact import LOCK_PATIENCE, check_artifact, record_artifact
from kmlab.provision.plan.source import PublishedImageSource, UserImageSource
from kmlab.virt import qcow2

_PATIENCE = 4 * 3600.0
_LIMIT = 16 << 30
"""The largest accepted image file, in bytes. Publishers' images are below 2 GiB."""


def published_image(source: PublishedImageSource, report: EventSink, *, refresh: bool = False) -> Path:
    """Return a publisher's image, from the cache if possible. `refresh` asks the publisher for the current one."""
    with _pull_state(source.name, source.arch, source.key_in_state, report) as state:
        if state.folder is None or refresh:
            deadline = Deadline(_PATIENCE)
            expected = expected_image(source, report, deadline)
            state.folder = _folder(source.name, source.arch, expected.digest)
            if not (state.folder / "image.json").exists():
                _download_published(source, expected, state.folder, report, deadline)
            if expected.signed is not None:
                state.signed = max(expected.signed, state.signed or 0)
        return _check(state.folder)


def _download_published(
    source: PublishedImageSource, expected: ExpectedImage, folder: Path, report: EventSink, deadline: Deadline
) -> None:
    try:
        with _download(expected.url, expected.digest, source.name, report, deadline) as unverified:
            _add_to_cache(unverified, folder, source.name, source.arch, expected, raw=False)
    except download.NotFound as missing:
        if source.key is not None or source.pin is None:
            raise
        raise ImageError(
            f"image '{source.name}': the pinned release is not on its server ({missing.message})",
            f"`make images` pins the newest; or in lab.yaml: image: {{name: {source.name}, serial: …, digest: …}}",
        ) from None


def own_image(source: UserImageSource, report: EventSink, *, refresh: bool = False) -> Path:
    """Return the user's own image, by URL or path. It is copied into the cache, so that it cannot change.

    `refresh` fetches an image without a digest again.
    """
    with _pull_state(source.name, source.arch, _source_key(source), report) as state:
        if state.folder is None or (refresh and source.digest is None):
            with (
                _copy(source, report) if source.path is not None else _download_user_image(source, report) as unverified
            ):
                digest = source.digest or disks.digest(unverified)
                state.folder = _folder(source.name, source.arch, digest)
                if not (state.folder / "image.json").exists():
                    by = "the digest in lab.yaml" if source.digest else "its place only"
                    about = ExpectedImage(url=source.url or str(source.path), digest=digest, by=by)
                    _add_to_cache(
                        unverified, state.folder, source.name, source.arch, about, raw=source.digest is not None
                    )
        return _check(state.folder)


def _source_key(source: UserImageSource) -> str:
    """Return a digest of an image's source. A file that has changed has another digest."""
    if source.path is None:
        return paths.digest_of(source.url, source.digest)
    try:
        status = source.path.stat()
    except OSError as error:
        raise ImageError(f"{source.path}: {error.strerror}", "check the path of the image in lab.yaml") from None
    return paths.digest_of(str(source.path), status.st_size, status.st_mtime_ns, status.st_ino, source.digest)


@dataclass(slots=True)
class _PullState:
    """An image's folder in the cache, and the time of its publisher's signature; stored in the state."""

    folder: Path | None
    signed: int | None


@contextlib.contextmanager
def _pull_state(name: str, arch: str, source_key: str, report: EventSink) -> Iterator[_PullState]:
    """Yield what is known of an earlier download from the same source, locked for this process. Store changes."""
    path = paths.pull_record(name, arch)
    with locks.held(paths.downloads() / f"{name}-{arch}.lock", name, report, Deadline(LOCK_PATIENCE)):
        record = paths.read_json(path)
        state = _PullState(None, None)
        if isinstance(record, dict):
            state.signed = record.get("signed")
            folder = paths.images() / Path(str(record.get("folder"))).name
            if record.get("said") == source_key and (folder / "image.json").exists():
                state.folder = folder
        yield state
        if state.folder is not None:
            about = {"said": source_key, "folder": state.folder.name, "signed": state.signed}
            if about != record:
                paths.write_json(path, about)


@contextlib.contextmanager
def _copy(source: UserImageSource, report: EventSink) -> Iterator[Path]:
    assert source.path is not None
    paths.require_space(paths.images(), source.path.stat().st_size, f"the image {source.path}")
    unverified = paths.make_folder(paths.downloads()) / f"{source.name}-{source.arch}.copy"
    try:
        with Stage(report, source.name, "copying the image into the cache") as stage:
            shutil.copyfile(source.path, unverified)
            digest = _digest(unverified, source.digest, stage)
            if source.digest is not None and digest != source.digest:
                raise _digest_error(str(source.path), digest, source.digest)
        yield unverified
    finally:
        unverified.unlink(missing_ok=True)


@contextlib.contextmanager
def _download_user_image(source: UserImageSource, report: EventSink) -> Iterator[Path]:
    assert source.url is not None
    if source.digest is None:
        if not source.url.startswith("https://"):
            raise ImageError(f"{source.url}: neither https nor a digest verifies this image", "add `sha256: …`")
        report(Note(source.name, "this image is not verified: lab.yaml has `unverified: true`"))
    with _download(source.url, source.digest, source.name, report, Deadline(_PATIENCE)) as unverified:
        yield unverified


def check_signature(folder: Path, lab_folder: Path | None) -> str | None:
    """Verify the publisher's signature of a cached image, and the digest that it signs. Return the problem.

    Return None if there is no problem, or no signature.
    """
    about = paths.read_json(folder / "image.json")
    if not isinstance(about, dict) or "digest" not in about or not (folder / "sums").exists():
        return None
    try:
        publisher = catalog.load_image(str(about["name"]), lab_folder).publisher
        if publisher is None or publisher.key is None:
            return "the catalogue no longer has a key for it"
        key = catalog.load_key(publisher.key, lab_folder)
        sums, signature = (folder / "sums").read_bytes(), (folder / "sums.signature").read_bytes()
        gpgv.verify(sums, signature, key.keyring, key.fingerprint, "sums")
        signed_digest = digest_in(sums, PurePosixPath(str(about["url"])).name, "sums")
        digest = disks.digest(folder / "disk.qcow2", kind=kind_of(signed_digest))
    except KmlabError as error:
        return error.message
    return None if digest == signed_digest else "not the image that its publisher signed"


def remove_downloads() -> int:
    """Remove interrupted downloads that no process continues. Return the freed bytes."""
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
def _download(url: str, digest: str | None, subject: str, report: EventSink, deadline: Deadline) -> Iterator[Path]:
    """Download a file and yield it if it has that digest. Only an interrupted download stays after the block."""
    key = digest[:32] if digest else paths.digest_of(url)
    unverified = paths.make_folder(paths.downloads()) / f"{key}.part"
    with (
        locks.held(unverified.with_suffix(".lock"), subject, report, Deadline(LOCK_PATIENCE)),
        Stage(report, subject, f"downloading {url}") as stage,
    ):

        def progress(done: int, total: int | None) -> None:
            of = f" of {total / 2**20:.0f}" if total else ""
            rate = f", {done / 2**20 / stage.seconds:.0f} MiB/s" if stage.seconds > 1 else ""
            stage.progress(done, total, "B", f"{done / 2**20:.0f}{of} MiB{rate}")

        paths.require_space(unverified.parent, 1 << 30, f"downloading image '{subject}'")
        try:
            resumed = download.fetch(url, unverified, deadline, limit=_LIMIT, progress=progress)
        except OSError as error:
            # A part kept for the next attempt would keep the disk full.
            _discard(unverified)
            raise (paths.disk_full_error(error) or error) from None
        file_digest = _digest(unverified, digest, stage)
        if digest is not None and file_digest != digest and resumed:
            # The earlier part may belong to another file: download it again from the beginning.
            _discard(unverified)
            download.fetch(url, unverified, deadline, limit=_LIMIT, progress=progress)
            file_digest = _digest(unverified, digest, stage)
        if digest is not None and file_digest != digest:
            _discard(unverified)
            raise _digest_error(url, file_digest, digest)
        stage.detail = f"{unverified.stat().st_size / 2**20:.0f} MiB"
        try:
            yield unverified
        finally:
            _discard(unverified)


def _digest(unverified: Path, expected: str | None, stage: Stage) -> str:
    stage.progress(detail="verifying")
    return disks.digest(unverified, kind=kind_of(expected) if expected else "sha256")


def _discard(unverified: Path) -> None:
    unverified.unlink(missing_ok=True)
    unverified.with_name(f"{unverified.name}.json").unlink(missing_ok=True)


def _add_to_cache(unverified: Path, final: Path, name: str, arch: str, about: ExpectedImage, *, raw: bool) -> None:
    """Check the header of a verified file and move the file into the cache."""
    with unverified.open("rb") as file:
        head = file.read(qcow2.HEAD)
    is_raw = raw and head[:4] != qcow2.MAGIC
    size = unverified.stat().st_size
    virtual = size if is_raw else qcow2.check(head, size, about.url).virtual_size
    lock = paths.work() / f"{final.name}.lock"
    with (
        locks.held(lock, name, lambda _: None, Deadline(LOCK_PATIENCE)),
        paths.atomic_folder(final, paths.work()) as folder,
    ):
        target = folder / "disk.qcow2"
        if is_raw:
            disks.convert_raw(unverified, target, Deadline(_PATIENCE))
        else:
            os.replace(unverified, target)
        facts = {"name": name, "arch": arch, "url": about.url, "digest": about.digest, "by": about.by}
        if about.sums:
            (folder / "sums").write_bytes(about.sums)
            (folder / "sums.signature").write_bytes(about.signature)
        record_artifact(folder / "image.json", target, {**facts, "virtual_size": str(virtual)})


def _check(folder: Path) -> Path:
    check_artifact(folder / "image.json", folder / "disk.qcow2")
    return folder / "disk.qcow2"


def _folder(name: str, arch: str, digest: str) -> Path:
    return paths.images() / f"{name}-{arch}-{digest[:16]}"


def _digest_error(what: str, digest: str, expected: str) -> ImageError:
    return ImageError(
        f"{what}: changed or truncated: its digest is {digest[:16]}… and must be {expected[:16]}…",
        "kmlab removed it; check that this is the publisher's server, or an up-to-date mirror",
    )
