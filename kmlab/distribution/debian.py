"""Debian, and what its relatives share with it: apt, dpkg, linux-image-… and linux-headers-…."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from kmlab.common.events import Deadline
from kmlab.distribution.distribution import Distribution, PackageFile, PackageRelease
from kmlab.host.packages import apt, debs, mmdebstrap
from kmlab.host.packages.package_archive import PackageArchive, PackageImage
from kmlab.kernel.build import kernel_releases
from kmlab.kernel.build.kernel_releases import Package, Release, SourcePackage, Unmatched, choose_source

_IMAGE, _HEADERS = "linux-image-", "linux-headers-"
_KERNEL = re.compile(_IMAGE + r"(unsigned-)?(?P<release>[0-9][A-Za-z0-9.+~_-]{0,99}?)(-unsigned)?", re.ASCII)
_DEBUG_SUFFIXES = ("-dbg", "-dbgsym")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Debian's keys on this host, from the package debian-archive-keyring."""
_AFTER_KERNEL = """\
depmod @RELEASE@
export DEB_MAINT_PARAMS="$*" INITRD=@INITRD@
for hooks in /etc/kernel/postinst.d /usr/share/kernel/postinst.d; do
	[ ! -d "$hooks" ] || run-parts --report --exit-on-error --arg=@RELEASE@ --arg=/boot/vmlinuz-@RELEASE@ "$hooks"
done
"""
"""The same as in a distribution's kernel packages, so that hooks make an initrd and a boot entry."""


class Debian(Distribution):
    """Debian."""

    package_suffix = ".deb"
    package_target = "bindeb-pkg"
    any_arch = "all"
    kernel_build_packages = ("bc", "bison", "bzip2", "flex", "libelf-dev", "xz-utils")
    clang_packages = ("clang", "lld", "llvm")

    def architecture(self, arch: str) -> str:
        return debs.NAMES[arch]

    def image_package(self, release: str) -> str:
        return f"{_IMAGE}{release}"

    def headers_package(self, release: str) -> str:
        return f"{_HEADERS}{release}"

    def headers_of(self, kernel: str) -> str:
        return kernel.replace(_IMAGE, _HEADERS, 1)

    def release_in(self, package: str) -> str | None:
        match = None if package.endswith(_DEBUG_SUFFIXES) else _KERNEL.fullmatch(package)
        return match["release"] if match else None

    def headers_folder(self, release: str) -> str:
        return f"usr/src/{_HEADERS}{release}"

    def open_archive(self, folder: Path, arch: str) -> PackageArchive:
        return apt.Archive(folder, arch)

    def kernels(self, archive: PackageArchive) -> list[Release]:
        return kernel_releases.releases(_packages(archive))

    def installed_kernel(self, archive: PackageArchive) -> str:
        return kernel_releases.installed_release(archive.status)

    def choose_kernel(self, words: str, archive: PackageArchive, extra_suites: Collection[str]) -> Release | Unmatched:
        installed = self.installed_kernel(archive)
        return kernel_releases.choose(words, _packages(archive), installed, extra_suites)

    def query_release(
        self,
        archive: PackageArchive,
        release: PackageRelease,
        deadline: Deadline,
        on_line: Callable[[str], None],
    ) -> bool:
        """Ask the servers that mmdebstrap asks, with the keys that it trusts."""
        known = mmdebstrap.default_servers()
        if not isinstance(archive, apt.Archive) or not _KEYRING.is_file() or known is None:
            return False
        server, security_server = known
        servers = [(server, release.suite), *((server, suite) for suite in release.extra_suites)]
        if release.suite not in ("sid", "unstable"):
            servers += [(server, f"{release.suite}-updates"), (security_server, f"{release.suite}-security")]
        sources = [apt.Source(place, suite, ("main",), (str(_KEYRING),)) for place, suite in servers]
        archive.update_release(sources, [_KEYRING], deadline, on_line, expired=release.expired_indexes)
        chosen = kernel_releases.choose(release.kernel, _packages(archive), "", release.extra_suites)
        if isinstance(chosen, Release):
            status = f"Package: {_IMAGE}{chosen.name}\nStatus: install ok installed\nVersion: {chosen.version}\n"
            archive.install_nothing_but(status)
        return True

    def choose_source(self, words: Sequence[str], archive: PackageArchive) -> SourcePackage | Unmatched:
        return choose_source(words, _packages(archive), self.installed_kernel(archive))

    def read_package(self, path: Path) -> PackageFile:
        fields = debs.fields(path)
        words = f"{fields.get('Depends', '')},{fields.get('Pre-Depends', '')}"
        depends = tuple(re.split(r"[\s(:]", part.strip())[0] for part in re.split("[,|]", words) if part.strip())
        return PackageFile(fields["Package"], fields.get("Architecture", ""), depends)

    def build_package(self, folder: Path, target: Path, name: str, arch: str, after: str = "") -> None:
        about = {
            "Package": name,
            "Version": "1",
            "Architecture": self.architecture(arch),
            "Maintainer": "kmlab <kmlab@localhost>",
            "Description": "the user's own kernel",
        }
        debs.build(folder, target, about, after)

    def unpack_package(self, path: Path, folder: Path, deadline: Deadline) -> None:
        debs.unpack(path, folder, deadline)

    def prepare_package(self, path: Path, deadline: Deadline) -> None:
        debs.expand(path, deadline)

    def after_kernel(self, release: str, *, initrd: bool = True) -> str:
        return _AFTER_KERNEL.replace("@RELEASE@", release).replace("@INITRD@", "Yes" if initrd else "No")

    def build_image(
        self, image: PackageImage, target: Path, deadline: Deadline, on_line: Callable[[str], None]
    ) -> dict[str, str]:
        return mmdebstrap.build(image, target, deadline, on_line)


def _packages(archive: PackageArchive) -> list[Package]:
    return [package for suite, text in archive.indexes() for package in kernel_releases.parse_packages(text, suite)]
