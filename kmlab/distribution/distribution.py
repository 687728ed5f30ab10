"""Define what kmlab must know about a family of distributions. What runs in the guest is in guests/FAMILY/."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kmlab.common.events import Deadline
from kmlab.host.packages.package_archive import PackageArchive, PackageImage
from kmlab.kernel.build.kernel_releases import Release, SourcePackage, Unmatched


@dataclass(frozen=True, slots=True)
class PackageFile:
    """The description in a package file."""

    name: str
    arch: str
    """In the distribution's words."""
    depends: tuple[str, ...]
    """Names only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageRelease:
    """A release of a distribution, as an image is built from it."""

    suite: str
    kernel: str
    """The package of the default kernel."""
    extra_suites: Sequence[str] = ()
    expired_indexes: bool = False


class Distribution(ABC):
    """A family of distributions that share names, tools and formats of packages."""

    package_suffix: ClassVar[str]
    """The ending of package files, with its dot."""
    package_target: ClassVar[str]
    """The target of the kernel's Makefile that writes such packages."""
    any_arch: ClassVar[str]
    """The architecture of packages that fit all architectures."""
    kernel_build_packages: ClassVar[tuple[str, ...]]
    """What the build of a kernel needs beside the tools for modules (Documentation/process/changes.rst)."""
    clang_packages: ClassVar[tuple[str, ...]]
    """What `make LLVM=1` needs."""

    # Names

    @abstractmethod
    def architecture(self, arch: str) -> str:
        """Return the distribution's name of an architecture; `arch` is as in `uname -m`."""

    @abstractmethod
    def image_package(self, release: str) -> str:
        """Return the package with the bootable kernel of a release (`uname -r`)."""

    @abstractmethod
    def headers_package(self, release: str) -> str:
        """Return the package to build modules for a release."""

    @abstractmethod
    def headers_of(self, kernel: str) -> str:
        """Return the headers package that belongs to a kernel package, also to one that follows the newest kernel."""

    @abstractmethod
    def release_in(self, package: str) -> str | None:
        """Return the release whose bootable kernel a package of this name has; None for all other packages."""

    @abstractmethod
    def headers_folder(self, release: str) -> str:
        """Return the folder of the installed headers, relative to /."""

    # The archive: `archive` is the image's, with current indexes

    @abstractmethod
    def open_archive(self, folder: Path, arch: str) -> PackageArchive:
        """Open an image's archive. `folder` keeps what was fetched. Only `Host` calls this."""

    @abstractmethod
    def kernels(self, archive: PackageArchive) -> list[Release]:
        """Return all kernels that have their headers, by suite, newest last."""

    @abstractmethod
    def installed_kernel(self, archive: PackageArchive) -> str:
        """Return the release of the image's newest kernel; empty if it has none."""

    @abstractmethod
    def choose_kernel(self, words: str, archive: PackageArchive, extra_suites: Collection[str]) -> Release | Unmatched:
        """Return the newest kernel that matches `kernel:` of lab.yaml, or why there is none."""

    @abstractmethod
    def choose_source(self, words: Sequence[str], archive: PackageArchive) -> SourcePackage | Unmatched:
        """Return the newest package with a kernel's sources that matches all words (a version, a suite), or why none.

        Without words, the series of the image's kernel is meant.
        """

    def query_release(
        self,
        archive: PackageArchive,
        release: PackageRelease,
        deadline: Deadline,
        on_line: Callable[[str], None],
    ) -> bool:
        """Fetch the indexes of a release whose image does not exist yet, so that a query builds none.

        Return False if only an image can tell where the archive is.
        """
        return False

    # Package files

    @abstractmethod
    def read_package(self, path: Path) -> PackageFile:
        """Return the description of a package file. Raise LabError if it is not one."""

    @abstractmethod
    def build_package(self, folder: Path, target: Path, name: str, arch: str, after: str = "") -> None:
        """Build a package of the files in `folder`, owned by root. `after` is a script for after the installation."""

    @abstractmethod
    def unpack_package(self, path: Path, folder: Path, deadline: Deadline) -> None:
        """Unpack the files of a verified package into `folder`, without running its scripts."""

    @abstractmethod
    def prepare_package(self, path: Path, deadline: Deadline) -> None:
        """Change a verified package file so that an emulated guest installs it quickly."""

    @abstractmethod
    def after_kernel(self, release: str, *, initrd: bool = True) -> str:
        """Return the script that makes the boot entry of a newly installed kernel, and its initrd unless not wanted."""

    # Images

    @abstractmethod
    def build_image(
        self, image: PackageImage, target: Path, deadline: Deadline, on_line: Callable[[str], None]
    ) -> dict[str, str]:
        """Build an image from signed packages, and return facts about it. Only `Host` calls this."""
