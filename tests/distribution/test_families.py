"""Every family of distributions keeps the promises of `Distribution`, and a new one takes one class and one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from kmlab.common.events import Deadline, silent
from kmlab.config import catalog
from kmlab.config.lab import load_lab
from kmlab.distribution import FAMILIES, Distribution, distribution_of
from kmlab.distribution.debian import Debian
from kmlab.distribution.distribution import PackageFile
from kmlab.distribution.ubuntu import Ubuntu
from kmlab.host.packages.package_archive import PackageArchive
from kmlab.kernel.build.kernel_releases import Release, Unmatched
from kmlab.provision import lifecycle
from kmlab.testing import World

RELEASES = ("6.1.0-56-cloud-amd64", "6.12.117+deb12-arm64", "6.8.0-45-generic", "6.9.0-mine")
NOBLE = """\
Package: linux-image-6.8.0-45-generic
Version: 6.8.0-45.45

Package: linux-headers-6.8.0-45-generic
Version: 6.8.0-45.45

Package: linux-image-6.11.0-19-generic
Version: 6.11.0-19.19~24.04.1

Package: linux-headers-6.11.0-19-generic
Version: 6.11.0-19.19~24.04.1

Package: linux-image-generic-hwe-24.04
Version: 6.11.0-19.19~24.04.1
Depends: linux-image-6.11.0-19-generic

Package: linux-image-6.14.0-5-generic
Version: 6.14.0-5.5

Package: linux-headers-6.14.0-5-generic
Version: 6.14.0-5.5

Package: linux-image-generic-hwe-24.04-edge
Version: 6.14.0-5.5
Depends: linux-image-6.14.0-5-generic

Package: linux-image-6.11.0-1032-nvidia-64k
Version: 6.11.0-1032.32

Package: linux-headers-6.11.0-1032-nvidia-64k
Version: 6.11.0-1032.32

Package: linux-image-nvidia-64k-hwe-24.04
Version: 6.11.0-1032.32
Depends: linux-image-6.11.0-1032-nvidia-64k
"""


class Index:
    """An archive that only has indexes."""

    status = "Package: linux-image-6.8.0-45-generic\nVersion: 6.8.0-45.45\n"

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self.texts = {"noble-updates": NOBLE} if texts is None else texts

    def update(self, *_: object, **__: object) -> None:
        raise AssertionError("nothing here needs the network")

    def fetch(self, packages: Sequence[str], *_: object) -> list[Path]:
        raise AssertionError("nothing here needs the network")

    def indexes(self) -> Iterator[tuple[str, str]]:
        yield from self.texts.items()


families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@families
@pytest.mark.parametrize("release", RELEASES)
def test_a_kernel_package_is_recognised_by_its_name_and_no_other_is(family: Distribution, release: str) -> None:
    kernel, headers = family.image_package(release), family.headers_package(release)
    assert family.release_in(kernel) == release
    assert family.headers_of(kernel) == headers
    assert {family.release_in(name) for name in (headers, "linux-source-6.1", "make")} == {None}


@families
def test_a_package_that_was_built_here_can_be_read_and_prepared(family: Distribution, tmp_path: Path) -> None:
    for arch in ("x86_64", "aarch64"):
        (tmp_path / arch / "etc").mkdir(parents=True)
        (tmp_path / arch / "etc" / "file").write_text("content")
        target = tmp_path / f"{arch}{family.package_suffix}"
        family.build_package(tmp_path / arch, target, "own", arch, "true\n")
        expected = PackageFile("own", family.architecture(arch), ())
        assert family.read_package(target) == expected
        family.prepare_package(target, Deadline(30))
        assert family.read_package(target) == expected


@families
def test_every_family_has_a_recipe_that_names_the_same_headers(family: Distribution) -> None:
    recipe = catalog.load_recipe(next(name for name, value in FAMILIES.items() if value is family))
    assert distribution_of(recipe.families) is family
    assert recipe.headers == family.headers_package("{release}")


@families
def test_an_archive_s_kernels_are_found_with_their_headers(family: Distribution) -> None:
    archive: PackageArchive = Index()
    assert {"6.8.0-45-generic", "6.11.0-19-generic"} <= {found.name for found in family.kernels(archive)}
    assert family.installed_kernel(archive) == "6.8.0-45-generic"
    chosen = family.choose_kernel("6.11", archive, ())
    assert isinstance(chosen, Release) and chosen.name == "6.11.0-19-generic"


def test_only_ubuntu_has_kernels_called_hwe() -> None:
    assert isinstance(FAMILIES["debian"].choose_kernel("hwe", Index(), ()), Unmatched)


def test_hwe_keeps_the_image_s_flavour_and_takes_no_unreleased_kernel() -> None:
    """Other flavours count their builds from 1000, so their versions are higher than generic's."""
    chosen = FAMILIES["ubuntu"].choose_kernel("hwe", Index(), ())
    assert isinstance(chosen, Release) and chosen.name == "6.11.0-19-generic"


def test_a_flavour_without_newer_kernels_is_reported() -> None:
    archive = Index()
    archive.status = "Package: linux-image-6.8.0-45-lowlatency\nVersion: 6.8.0-45.45\n"
    chosen = FAMILIES["ubuntu"].choose_kernel("hwe", archive, ())
    assert isinstance(chosen, Unmatched)
    assert chosen.message == "the archive has no newer kernel (HWE) of the flavour 'lowlatency'"


SOURCES = """\
Package: linux-source-6.1
Version: 6.1.192-2

Package: linux-source-6.1.9
Version: 6.1.9-1

Package: linux-source
Version: 6.1.192-2
Depends: linux-source-6.1
"""
BACKPORTS = """\
Package: linux-source-6.12
Version: 6.12.117-1~deb12u1

Package: linux-source-6.12
Version: 6.12.90-1~deb12u1
"""


@families
@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ((), "linux-source-6.1 6.1.192-2 bookworm"),
        (("6.1",), "linux-source-6.1 6.1.192-2 bookworm"),
        (("6.12",), "linux-source-6.12 6.12.117-1~deb12u1 bookworm-backports"),
        (("backports",), "linux-source-6.12 6.12.117-1~deb12u1 bookworm-backports"),
        (("backports", "6.12.90"), "linux-source-6.12 6.12.90-1~deb12u1 bookworm-backports"),
    ],
)
def test_the_sources_of_a_kernel_are_chosen_by_version_or_suite(
    family: Distribution, words: tuple[str, ...], chosen: str
) -> None:
    archive = Index({"bookworm": SOURCES, "bookworm-backports": BACKPORTS})
    archive.status = "Package: linux-image-6.1.0-56-cloud-amd64\nVersion: 6.1.190-1\n"
    source = family.choose_source(words, archive)
    assert not isinstance(source, Unmatched)
    assert f"{source.name} {source.version} {source.suite}" == chosen


@families
def test_sources_that_the_archive_does_not_have_are_an_error_that_lists_those_it_has(family: Distribution) -> None:
    source = family.choose_source(("5.10",), Index({"bookworm": SOURCES}))
    assert isinstance(source, Unmatched)
    assert source.message == "the archive has no kernel sources (linux-source-…) for '5.10'"
    assert source.hint == "it has the sources of 6.1 (bookworm), 6.1.9 (bookworm)"
    assert isinstance(family.choose_source((), Index({})), Unmatched)


def test_a_lab_s_own_recipe_uses_the_distribution_that_it_is_like(tmp_path: Path) -> None:
    for name, text in {
        "mine": "family: mine\nlike: ubuntu\n",
        "yours": "family: yours\nlike: mine\n",
        "alone": "family: alone\nsystem: []\npackages: []\nheaders: h-{release}\ncmdline: quiet\n",
    }.items():
        (tmp_path / "guests" / name).mkdir(parents=True)
        (tmp_path / "guests" / name / "recipe.yaml").write_text(text)
    assert isinstance(distribution_of(catalog.load_recipe("yours", tmp_path).families), Ubuntu)
    assert type(distribution_of(catalog.load_recipe("alone", tmp_path).families)) is Debian


class Toy(Debian):
    """A distribution whose packages are text files: their first line is the name."""

    package_suffix = ".toy"
    package_target = "toy-pkg"

    def image_package(self, release: str) -> str:
        return f"kernel-{release}"

    def headers_package(self, release: str) -> str:
        return f"kernel-devel-{release}"

    def release_in(self, package: str) -> str | None:
        return None if "-devel-" in package else package.removeprefix("kernel-")

    def read_package(self, path: Path) -> PackageFile:
        return PackageFile(path.read_text().splitlines()[0], self.any_arch, ())

    def prepare_package(self, path: Path, deadline: Deadline) -> None:
        path.write_text(path.read_text() + "prepared\n")


def test_a_new_family_takes_one_class_one_line_and_a_recipe(xdg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", Toy())
    (xdg / "guests" / "toy").mkdir(parents=True)
    (xdg / "guests" / "toy" / "recipe.yaml").write_text("family: toy\nlike: debian\n")
    for name in ("kernel-6.9.0", "kernel-devel-6.9.0"):
        (xdg / f"{name}.toy").write_text(f"{name}\n")
    (xdg / "lab.yaml").write_text(
        "name: t\nguests:\n  g: {image: debian-12, recipe: toy, kernel: {local: '*.toy'}, memory: 256M}\n"
    )
    lab = load_lab(xdg / "lab.yaml")
    with World(release="6.9.0") as world:
        with lifecycle.guest_session(world.host, lab, lab.guest("g"), silent) as guest:
            assert guest.record.release == "6.9.0"
        assert b"0.toy" in world.seeds[-1] and b"kernel-devel-6.9.0\nprepared\n" in world.seeds[-1]
    (xdg / "kernel-devel-6.9.0.toy").unlink()
    with (
        World() as world,
        pytest.raises(Exception, match=r"no kernel-devel-6\.9\.0 for its image") as caught,
        lifecycle.guest_session(world.host, lab, lab.guest("g"), silent),
    ):
        pass
    assert "`make toy-pkg` writes both" in str(getattr(caught.value, "hint", ""))
