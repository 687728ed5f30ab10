"""A lab that takes its image from a local publisher, watched: what QEMU's tools are shown, and what is cached."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kmlab.common import paths
from kmlab.common.events import Event, Note
from kmlab.config.lab import load_lab
from kmlab.provision import lifecycle
from kmlab.testing import World
from tests.publisher import Publisher

OLD, NEW = "20260110", "20260220"


class Site:
    """A lab that takes its image from a publisher, and a record of every call of QEMU's tools."""

    def __init__(self, folder: Path, publisher: Publisher, calls: Path) -> None:
        self.folder, self.publisher, self.calls = folder, publisher, calls
        self.notes: list[str] = []
        self.lab("testix")
        publisher.catalogue(folder)

    def lab(self, image: str, more: str = "") -> None:
        (self.folder / "lab.yaml").write_text(f"name: t\n{more}guests:\n  g: {{image: {image}}}\n")

    def hear(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event.text)

    def pull(self, *, refresh: bool = True) -> Path:
        lab = load_lab(self.folder / "lab.yaml")
        with World() as world:
            return lifecycle.guest_image(world.host, lab, lab.guest("g"), self.hear, refresh=refresh)

    @property
    def cached(self) -> list[str]:
        """Names in the cache of images, and of half-made ones."""
        places = (paths.images(), paths.work())
        return [p.name for place in places if place.is_dir() for p in place.iterdir() if p.is_dir()]

    def nothing_was_read(self) -> bool:
        """Whether no byte was shown to QEMU's tools, or lies in the cache under its final name."""
        return not self.calls.exists() and self.cached == []


def pin(image: bytes, serial: str = OLD, signed: str = "2026-01-10T00:00:00Z") -> str:
    return f"{{serial: '{serial}', digest: {hashlib.sha256(image).hexdigest()}, signed: {signed}}}"


def at(publisher: Publisher, name: str) -> str:
    return f"{publisher.folder}/release/{name}"
