"""Which kernel is meant, told from Debian 12's own indexes of November 2026, cut down to some kernels."""

from __future__ import annotations

import subprocess
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kmlab.kernel.build.kernel_releases import (
    Package,
    Release,
    Unmatched,
    choose,
    installed_release,
    parse_packages,
    releases,
    split_release,
    version_key,
)
from tests.places import TEST_DATA

DATA = TEST_DATA / "releases"
INSTALLED = "6.1.0-56-cloud-amd64"
FURTHER = ("bookworm-backports",)
BOOKWORM = [p for path in sorted(DATA.glob("*.txt")) for p in parse_packages(path.read_text(), path.stem)]
UBUNTU = [
    Package(f"linux-{kind}-{release}", version, suite)
    for release, version, suite in (
        ("6.8.0-40-generic", "6.8.0-40.40", "noble"),
        ("6.8.0-45-generic", "6.8.0-45.45", "noble-updates"),
        ("6.8.0-45-lowlatency", "6.8.0-45.45", "noble-updates"),
        ("6.11.0-19-generic", "6.11.0-19.19~24.04.1", "noble-updates"),
    )
    for kind in ("image", "headers")
] + [
    Package("linux-modules-extra-6.8.0-45-generic", "6.8.0-45.45", "noble-updates"),
    Package(
        "linux-image-generic-hwe-24.04", "6.11.0-19.19~24.04.1", "noble-updates", ("linux-image-6.11.0-19-generic",)
    ),
]


@pytest.mark.parametrize(
    ("asked", "release", "suite"),
    [
        ("6.1", "6.1.0-56-cloud-amd64", "bookworm-security"),
        ("6.1.0-50", "6.1.0-50-cloud-amd64", "bookworm"),
        ("6.12", "6.12.117+deb12-cloud-amd64", "bookworm-security"),
        ("6.12.95", "6.12.95+deb12-cloud-amd64", "bookworm-backports"),
        ("6.*", "6.12.117+deb12-cloud-amd64", "bookworm-security"),
        ("6.1.176-1", "6.1.0-50-cloud-amd64", "bookworm"),
        ("6.1.0-50-rt-amd64", "6.1.0-50-rt-amd64", "bookworm"),
        ("backports", "6.12.95+deb12-cloud-amd64", "bookworm-backports"),
        ("bookworm-backports", "6.12.95+deb12-cloud-amd64", "bookworm-backports"),
        ("bookworm", "6.1.0-50-cloud-amd64", "bookworm"),
        ("rt", "6.1.0-56-rt-amd64", "bookworm-security"),
        ("cloud", "6.1.0-56-cloud-amd64", "bookworm-security"),
        ("generic", "6.1.0-56-amd64", "bookworm-security"),
        ("rt-amd64", "6.1.0-56-rt-amd64", "bookworm-security"),
        ("6.12-rt", "6.12.117+deb12-rt-amd64", "bookworm-security"),
        ("6.12:rt", "6.12.117+deb12-rt-amd64", "bookworm-security"),
        ("backports:rt", "6.12.95+deb12-rt-amd64", "bookworm-backports"),
        ("6.12-backports-generic", "6.12.95+deb12-amd64", "bookworm-backports"),
        ("linux-image-6.1.0-53-amd64", "6.1.0-53-amd64", "bookworm-security"),
        ("linux-headers-6.1.0-53-amd64", "6.1.0-53-amd64", "bookworm-security"),
        ("linux-image-rt-amd64", "6.1.0-56-rt-amd64", "bookworm-security"),
        ("linux-image-6.12-cloud-amd64", "6.12.117+deb12-cloud-amd64", "bookworm-security"),
    ],
)
def test_what_is_asked_for_is_found_in_debian_s_archive(asked: str, release: str, suite: str) -> None:
    found = choose(asked, BOOKWORM, INSTALLED, FURTHER)
    assert isinstance(found, Release), found
    assert (found.name, found.suite) == (release, suite)
    assert found.packages == (f"linux-image-{release}", f"linux-headers-{release}")


@pytest.mark.parametrize(
    ("asked", "release"),
    [
        ("generic", "6.8.0-45-generic"),
        ("lowlatency", "6.8.0-45-lowlatency"),
        ("6.8", "6.8.0-45-generic"),
        ("noble", "6.8.0-40-generic"),
        ("6.8.0-40", "6.8.0-40-generic"),
        ("linux-image-generic-hwe-24.04", "6.11.0-19-generic"),
    ],
)
def test_what_is_asked_for_is_found_in_ubuntu_s_archive(asked: str, release: str) -> None:
    found = choose(asked, UBUNTU, "6.8.0-40-generic")
    assert isinstance(found, Release), found
    assert found.name == release


def test_modules_extra_is_taken_where_it_exists_and_nowhere_else() -> None:
    extra = {r.name: [p for p in r.packages if "extra" in p] for r in releases(UBUNTU)}
    assert extra["6.8.0-45-generic"] == ["linux-modules-extra-6.8.0-45-generic"]
    assert extra["6.11.0-19-generic"] == []


def test_an_unknown_kernel_is_said_with_those_there_are() -> None:
    found = choose("6.13", BOOKWORM, INSTALLED, FURTHER)
    assert isinstance(found, Unmatched)
    assert found.message == "no kernel matches '6.13'"
    assert found.hint == (
        "there are 6.12.117+deb12, 6.12.115+deb12, 6.12.95+deb12, 6.1.0-56, 6.1.0-53, 6.1.0-50, 6.1.0-47; "
        "flavours amd64, cloud-amd64, rt-amd64; suites bookworm, bookworm-backports, bookworm-security"
    )


@pytest.mark.parametrize("asked", ["6.1.0-51", "linux-image-6.1.0-51-cloud-amd64"])
def test_an_image_that_outlived_its_headers_is_no_kernel_and_that_is_said(asked: str) -> None:
    found = choose(asked, BOOKWORM, INSTALLED, FURTHER)
    assert isinstance(found, Unmatched)
    assert "linux-image-6.1.0-51-cloud-amd64 and not its headers" in found.message


def test_an_archive_without_kernels_says_so() -> None:
    found = choose("6.1", [], "", ())
    assert found == Unmatched("no kernel matches '6.1'", "the image's archive has no kernel with headers")


def test_metapackages_and_debug_symbols_are_no_kernels() -> None:
    names = {release.name for release in releases(BOOKWORM)}
    assert "6.12-cloud-amd64" not in names
    assert not [name for name in names if "dbg" in name]


def test_the_installed_kernel_is_read_from_dpkg_s_list() -> None:
    status = (
        "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nDepends: linux-image-6.1.0-56-cloud-amd64\n"
        "\nPackage: linux-image-6.1.0-56-cloud-amd64\nStatus: install ok installed\nVersion: 6.1.192-2\n"
        "\nPackage: linux-image-6.1.0-9-cloud-amd64\nStatus: install ok installed\nVersion: 6.1.27-1\n"
        "\nPackage: linux-image-6.12.95+deb12-amd64\nStatus: deinstall ok config-files\nVersion: 6.12.95-1\n"
    )
    assert installed_release(status) == INSTALLED
    assert installed_release("") == ""


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("6.1.0-56-cloud-amd64", ("6.1.0-56", "cloud-amd64")),
        ("6.12.90+deb12.1-rt-amd64", ("6.12.90+deb12.1", "rt-amd64")),
        ("7.2.12+deb14-amd64", ("7.2.12+deb14", "amd64")),
        ("6.8.0-45-generic", ("6.8.0-45", "generic")),
        ("6.9.0-mine+", ("6.9.0-mine+", "")),
    ],
)
def test_a_release_is_a_version_and_a_flavour(name: str, parts: tuple[str, str]) -> None:
    assert split_release(name) == parts


def test_versions_are_in_dpkg_s_order() -> None:
    rising = ["1.0~rc1", "1.0~rc1-1", "1.0", "1.0-1~bpo12+1", "1.0-1", "1.0+b1", "1.0.1", "1.9", "1.10", "2", "1:0.1"]
    assert sorted(rising, key=version_key) == rising
    for lower, higher in pairwise(rising):
        subprocess.run(["dpkg", "--compare-versions", lower, "lt", higher], check=True)


@given(st.lists(st.from_regex(r"[0-9][0-9A-Za-z.+~]{0,6}(-[0-9a-z.+~]{1,4})?", fullmatch=True), min_size=2, max_size=2))
@example(["0", "0-0"])
@example(["0", "0~"])
def test_any_two_versions_are_in_dpkg_s_order(pair: list[str]) -> None:
    one, other = pair
    lower = version_key(one) < version_key(other)
    said = subprocess.run(["dpkg", "--compare-versions", one, "lt", other], check=False, capture_output=True)
    assert lower == (said.returncode == 0)


@given(st.text(max_size=40))
def test_no_question_makes_the_chooser_fall_over(asked: str) -> None:
    assert isinstance(choose(asked, BOOKWORM, INSTALLED, FURTHER), (Release, Unmatched))
