"""What an image comes from: packages, a publisher, or a person."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kmlab.common import paths
from kmlab.config import catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageImageSource:
    """Built on this host from a distribution's signed packages."""

    name: str
    arch: str
    family: str
    packages: catalog.PackageSource
    expired_indexes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Made by a publisher, and how this lab wants it."""

    name: str
    arch: str
    publisher: catalog.Publisher
    file: str
    dated_file: str | None
    key: catalog.Key | None
    """None where the publisher signs nothing."""
    pin: catalog.Pin | None
    """lab.yaml's, or else the catalogue's."""
    unverified: bool = False
    mirror: str | None = None

    @property
    def server(self) -> str:
        """The publisher's, or the mirror that stands for it."""
        if self.mirror is None:
            return self.publisher.server
        parts = urlsplit(self.publisher.server)
        return self.mirror.replace("{host}", parts.netloc).rstrip("/") + parts.path

    def newest(self) -> tuple[str, str]:
        """The folder of the newest release, and the file's name there."""
        return f"{self.server}/{self.publisher.newest}", self.file

    def dated(self, serial: str) -> tuple[str, str]:
        """The folder of one release, and the file's name there."""
        folder, name = self.publisher.dated, self.dated_file or self.file
        return f"{self.server}/{folder.replace('{serial}', serial)}", name.replace("{serial}", serial)

    @property
    def said(self) -> str:
        """A name for all that decides which bytes are right, but for what the publisher says today."""
        key = self.key.fingerprint if self.key else None
        return paths.digest_of(self.publisher, self.file, self.dated_file, key, self.pin, self.unverified)


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A person's own, by its place."""

    name: str
    arch: str
    url: str | None = None
    path: Path | None = None
    digest: str | None = None


Source = PackageImageSource | Published | Own
