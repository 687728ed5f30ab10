"""Describe the source of an image: packages, a publisher, or the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kmlab.common import paths
from kmlab.config import catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageImageSource:
    """An image that is built on this host from a distribution's signed packages."""

    name: str
    arch: str
    family: str
    packages: catalog.PackageSource
    expired_indexes: bool = False
    keyrings: tuple[Path, ...] = ()
    """Keys that may sign the packages, besides those of the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedImageSource:
    """An image of a publisher, with the lab's settings for it."""

    name: str
    arch: str
    publisher: catalog.Publisher
    file: str
    dated_file: str | None
    key: catalog.Key | None
    """None if the publisher signs nothing."""
    pin: catalog.Pin | None
    """The pin of lab.yaml, or else of the catalogue."""
    unverified: bool = False
    mirror: str | None = None

    @property
    def server(self) -> str:
        """Return the URL of the publisher's server, or of the mirror that replaces it."""
        if self.mirror is None:
            return self.publisher.server
        parts = urlsplit(self.publisher.server)
        return self.mirror.replace("{host}", parts.netloc).rstrip("/") + parts.path

    def newest(self) -> tuple[str, str]:
        """Return the folder of the newest release, and the file's name there."""
        return f"{self.server}/{self.publisher.newest}", self.file

    def dated(self, serial: str) -> tuple[str, str]:
        """Return the folder of one release, and the file's name there."""
        folder, name = self.publisher.dated, self.dated_file or self.file
        return f"{self.server}/{folder.replace('{serial}', serial)}", name.replace("{serial}", serial)

    @property
    def key_in_state(self) -> str:
        """Return a digest of all settings that determine the image, except the publisher's current checksums."""
        key = self.key.fingerprint if self.key else None
        return paths.digest_of(self.publisher, self.file, self.dated_file, key, self.pin, self.unverified)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserImageSource:
    """The user's own image, by URL or path."""

    name: str
    arch: str
    url: str | None = None
    path: Path | None = None
    digest: str | None = None


Source = PackageImageSource | PublishedImageSource | UserImageSource
