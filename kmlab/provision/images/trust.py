"""Which bytes are the right ones: what a publisher signed, what the catalogue pins, or what a person says.

Nothing of an image is downloaded before this is known, but where a person wants it unverified.
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
from kmlab.provision.plan.source import Published

_SUMS_LIMIT = 1 << 20
_SIGNATURE_LIMIT = 1 << 16
_LINE = re.compile(r"(?P<digest>[0-9a-fA-F]{64}|[0-9a-fA-F]{128}) [ *](?P<name>\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Where the image is to be had, and what it must be."""

    url: str
    digest: str
    by: str
    """What says so, in words."""
    signed: int | None = None
    """When its sums were signed."""
    sums: bytes = b""
    signature: bytes = b""
    """What was signed, and the signature: kept beside the image."""


def expected(wanted: Published, report: EventSink, deadline: Deadline) -> Expected:
    """What to download; ImageError where nothing says which bytes are right, or what says so is not to be trusted."""
    if wanted.key is not None:
        return _signed(wanted, wanted.key, report, deadline)
    if wanted.pin is not None:
        folder, name = wanted.dated(wanted.pin.serial) if wanted.pin.serial else wanted.newest()
        return Expected(url=f"{folder}/{name}", digest=wanted.pin.digest, by="the pinned digest")
    if not wanted.unverified:
        raise ImageError(
            f"image '{wanted.name}': its publisher signs nothing, and neither the catalogue nor lab.yaml has a digest",
            f"`make images` looks up a pin; or in lab.yaml: image: {{name: {wanted.name}, digest: …}}, "
            "or `unverified: true` there to boot whatever the server sends",
        )
    folder, name = wanted.newest()
    sums = download.read(f"{folder}/{wanted.publisher.sums}", deadline, limit=_SUMS_LIMIT)
    report(Note(wanted.name, "nobody vouches for this image: lab.yaml says `unverified: true`"))
    return Expected(url=f"{folder}/{name}", digest=digest_in(sums, name, folder), by="the server itself, unverified")


def _signed(wanted: Published, key: catalog.Key, report: EventSink, deadline: Deadline) -> Expected:
    pin = wanted.pin
    if pin is not None and pin.serial:
        try:
            found = read_signed(wanted, key, *wanted.dated(pin.serial), deadline)
        except download.NotFound as gone:
            if pin.signed is None:
                raise
            found = read_signed(wanted, key, *wanted.newest(), deadline)
            _refuse_older(wanted, found, pin.signed, "the catalogue pins")
            report(Note(wanted.name, f"release {pin.serial} is gone ({gone.message}): the newest one instead"))
            return found
    else:
        found = read_signed(wanted, key, *wanted.newest(), deadline)
    if pin is None:
        seen = paths.read_json(paths.pull_record(wanted.name, wanted.arch))
        if isinstance(seen, dict) and isinstance(seen.get("signed"), int):
            _refuse_older(wanted, found, seen["signed"], "this host had before")
    elif found.digest != pin.digest:
        if pin.signed is not None and found.signed is not None and found.signed < pin.signed:
            _refuse_older(wanted, found, pin.signed, "the catalogue pins")
        raise ImageError(
            f"{found.url}: the publisher signed another image than the one pinned: {found.digest[:16]}… "
            f"instead of {pin.digest[:16]}…",
            "is this the publisher's server? `make images` looks up the pins anew",
        )
    return found


def read_signed(wanted: Published, key: catalog.Key, folder: str, name: str, deadline: Deadline) -> Expected:
    """What the publisher signed of a file in one of its folders."""
    assert wanted.publisher.signature is not None
    place = f"{folder}/{wanted.publisher.sums}"
    sums = download.read(place, deadline, limit=_SUMS_LIMIT)
    signature = download.read(f"{folder}/{wanted.publisher.signature}", deadline, limit=_SIGNATURE_LIMIT)
    good = gpgv.verify(sums, signature, key.keyring, key.fingerprint, place)
    return Expected(
        url=f"{folder}/{name}",
        digest=digest_in(sums, name, folder),
        by=f"the signature of {key.fingerprint}",
        signed=good.made,
        sums=sums,
        signature=signature,
    )


def _refuse_older(wanted: Published, found: Expected, floor: int, whose: str) -> None:
    if found.signed is not None and found.signed < floor:
        raise ImageError(
            f"image '{wanted.name}': {found.url} was signed on {day(found.signed)}, and is older than the one that "
            f"{whose} ({day(floor)})",
            "an old release with its known holes may be served to you; is the mirror up to date?",
        )


def digest_in(sums: bytes, name: str, where: str) -> str:
    """The digest of a file by a SHA256SUMS or SHA512SUMS file (sha256sum(1)), where it must stand just once."""
    found = []
    for line in sums.decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match and PurePosixPath(match["name"]).as_posix().removeprefix("./") == name:
            found.append(match["digest"].lower())
    if len(found) != 1:
        raise ImageError(f"{where}: its sums name {printable(name)} {len(found)} times, and not once")
    return found[0]


def kind_of(digest: str) -> str:
    """Of a digest in hex, by its length, as hashlib calls it."""
    return {64: "sha256", 128: "sha512"}[len(digest)]


def day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d")
