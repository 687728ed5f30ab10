"""Define what every distribution's package tools offer: an archive to query, an image to build."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kmlab.common.events import Deadline


class PackageArchive(Protocol):
    """An image's package archive, queried from the host."""

    @property
    def status(self) -> str:
        """Return the list of the packages that are installed in the image, in the distribution's own format."""

    def update(
        self,
        disk: Path,
        extra_suites: Sequence[str],
        deadline: Deadline,
        on_line: Callable[[str], None],
        *,
        expired: bool = False,
    ) -> None:
        """Fetch the indexes of the image's sources, and those of `extra_suites`."""

    def indexes(self) -> Iterator[tuple[str, str]]:
        """Yield the (suite, text) of each index, in the distribution's own format."""

    def fetch(
        self, packages: Sequence[str], suite: str | None, deadline: Deadline, on_line: Callable[[str], None]
    ) -> list[Path]:
        """Fetch and verify packages (`name=version`) and their missing dependencies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageImage:
    """The description of an image to build."""

    distribution: str
    """The folder on the EFI partition where the signed GRUB looks for its configuration."""
    suite: str
    arch: str
    packages: Sequence[str]
    root_size: int
    """Bytes of the root file system."""
    hook: str
    """The shell script that turns the unpacked root $1 into a file system in the open file $2, and describes it in
    FACTS."""
    expired_indexes: bool = False
    """Whether to accept indexes after their Valid-Until date."""
    keyrings: Sequence[Path] = ()
    """Files with keys that may sign the packages, besides those that the host's package tools trust."""


ArchiveOpener = Callable[[Path, str], PackageArchive]
"""A distribution's `open_archive`."""
ImageBuilder = Callable[[PackageImage, Path, Deadline, Callable[[str], None]], dict[str, str]]
"""A distribution's `build_image`."""
