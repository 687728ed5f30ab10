"""Find the digest that an image must have: from the publisher's signature, the catalogue's pin, or lab.yaml.

This is done before the download. Only an image with `unverified: true` may have no trusted digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import PurePosixPath

from kmlab.common import paths
from kmlab.common.errors import ImageError
from kmlab.common.events import Deadline, EventSink, Note, printable
from kmlab.config import catalog
from kmlab.host.net import download, gpgv
from kmlab.provision.plan.source import PublishedImageSource

_SUMS_LIMIT = 1 << 20
_SIGNATURE_LIMIT = 1 << 16
_LINE = re.compile(r"(?P<digest>[0-9a-fA-F]{64}|[0-9a-fA-F]{128}) [ *](?P<name>\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedImage:
    """The URL of an image, and the digest that it must have."""

    url: str
    digest: str
    by: str
    """The source of the digest, in words."""
    signed: int | None = None
    """When the checksums were signed, in seconds since 1970."""
    sums: bytes = b""
    signature: bytes = b""
    """The checksum file and its signature, which are stored next to the image."""


def expected_image(source: PublishedImageSource, report: EventSink, deadline: Deadline) -> ExpectedImage:
    """Return what to download. Raise ImageError if there is no trusted digest."""
    if source.key is not None:
        return _signed(source, source.key, report, deadline)
    if source.pin is not None:
        folder, name = source.dated(source.pin.serial) if source.pin.serial else source.newest()
        return ExpectedImage(url=f"{folder}/{name}", digest=source.pin.digest, by="the pinned digest")
    if not source.unverified:
        raise ImageError(
            f"image '{source.name}': its publisher signs nothing, and neither the catalogue nor lab.yaml has a digest",
            f"`make images` looks up a pin; or in lab.yaml: image: {{name: {source.name}, digest: …}}, "
            "or `unverified: true` there to boot whatever the server sends",
        )
    folder, name = source.newest()
    sums = download.read(f"{folder}/{source.publisher.sums}", deadline, limit=_SUMS_LIMIT)
    report(Note(source.name, "this image is not verified: lab.yaml has `unverified: true`"))
    return ExpectedImage(
        url=f"{folder}/{name}", digest=digest_in(sums, name, folder), by="the server itself, unverified"
    )


def _signed(source: PublishedImageSource, key: catalog.Key, report: EventSink, deadline: Deadline) -> ExpectedImage:
    pin = source.pin
    if pin is not None and pin.serial:
        try:
            image = read_signed(source, key, *source.dated(pin.serial), deadline)
        except download.NotFound as missing:
            if pin.signed is None:
                raise
            image = read_signed(source, key, *source.newest(), deadline)
            _refuse_older(source, image, pin.signed, "the catalogue pins")
            report(
                Note(
                    source.name,
                    f"release {pin.serial} is no longer available ({missing.message}): using the newest one",
                )
            )
            return image
    else:
        image = read_signed(source, key, *source.newest(), deadline)
    if pin is None:
        record = paths.read_json(paths.pull_record(source.name, source.arch))
        if isinstance(record, dict) and isinstance(record.get("signed"), int):
            _refuse_older(source, image, record["signed"], "this host had before")
    elif image.digest != pin.digest:
        if pin.signed is not None and image.signed is not None and image.signed < pin.signed:
            _refuse_older(source, image, pin.signed, "the catalogue pins")
        raise ImageError(
            f"{image.url}: the publisher signed another image than the one pinned: {image.digest[:16]}… "
            f"instead of {pin.digest[:16]}…",
            "check that this is the publisher's server; `make images` updates the pins",
        )
    return image


def read_signed(
    source: PublishedImageSource, key: catalog.Key, folder: str, name: str, deadline: Deadline
) -> ExpectedImage:
    """Return the signed digest of a file in one of the publisher's folders. Raise ImageError for a bad signature."""
    assert source.publisher.signature is not None
    place = f"{folder}/{source.publisher.sums}"
    sums = download.read(place, deadline, limit=_SUMS_LIMIT)
    signature = download.read(f"{folder}/{source.publisher.signature}", deadline, limit=_SIGNATURE_LIMIT)
    good = gpgv.verify(sums, signature, key.keyring, key.fingerprint, place)
    return ExpectedImage(
        url=f"{folder}/{name}",
        digest=digest_in(sums, name, folder),
        by=f"the signature of {key.fingerprint}",
        signed=good.made,
        sums=sums,
        signature=signature,
    )


def _refuse_older(source: PublishedImageSource, image: ExpectedImage, oldest: int, whose: str) -> None:
    if image.signed is not None and image.signed < oldest:
        raise ImageError(
            f"image '{source.name}': {image.url} was signed on {day(image.signed)}, which is older than the one that "
            f"{whose} ({day(oldest)})",
            "the server may offer an old release with known vulnerabilities; check that the mirror is up to date",
        )


def digest_in(sums: bytes, name: str, where: str) -> str:
    """Return a file's digest from a SHA256SUMS or SHA512SUMS file (sha256sum(1)). It must be listed exactly once."""
    digests = []
    for line in sums.decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match and PurePosixPath(match["name"]).as_posix().removeprefix("./") == name:
            digests.append(match["digest"].lower())
    if len(digests) != 1:
        raise ImageError(
            f"{where}: the checksum file lists {printable(name)} {len(digests)} times; exactly one entry is required"
        )
    return digests[0]


def kind_of(digest: str) -> str:
    """Return hashlib's name for the kind of a hex digest, from its length."""
    return {64: "sha256", 128: "sha512"}[len(digest)]


def day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d")
