"""Provide an apt archive without a network; it replaces host/packages/apt.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kmlab.common.events import Deadline
from kmlab.host.packages.apt import Archive, Source
from kmlab.testing.fake_packages import package_file
from kmlab.testing.setting import WorldState


class FakeArchive(Archive):
    """Serves the World's package indexes and empty packages, without a network."""

    def __init__(self, world: WorldState, folder: Path, arch: str) -> None:
        super().__init__(folder, arch)
        self._world = world

    @property
    def status(self) -> str:
        return f"Package: linux-image-{self._world.release}\nVersion: 1\n"

    def update(
        self,
        disk: Path,
        further: Sequence[str],
        deadline: Deadline,
        on_line: Callable[[str], None],
        *,
        expired: bool = False,
    ) -> None:
        self._world.ask("update")

    def update_release(
        self,
        sources: Sequence[Source],
        keyrings: Sequence[Path],
        deadline: Deadline,
        on_line: Callable[[str], None],
        *,
        expired: bool = False,
    ) -> None:
        self._world.ask(f"update-release {' '.join(source.suite for source in sources)}")

    def install_nothing_but(self, stanza: str) -> None:
        pass

    def indexes(self) -> Iterator[tuple[str, str]]:
        yield from self._world.indexes.items()

    def fetch(
        self, packages: Sequence[str], suite: str | None, deadline: Deadline, on_line: Callable[[str], None]
    ) -> list[Path]:
        self._world.ask(f"fetch {' '.join(packages)}" + (f" from {suite}" if suite else ""))
        return [package_file(self.folder, package.partition("=")[0]) for package in packages]
