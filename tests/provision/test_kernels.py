"""A guest with a kernel of its own: looked up once, verified packages in its seed, a base of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import silent
from kmlab.config.lab import Lab, load_lab
from kmlab.provision import lifecycle
from kmlab.run import parallel
from kmlab.testing import World
from tests.places import TEST_DATA

DATA = TEST_DATA / "releases"
INDEXES = {path.stem: path.read_text() for path in sorted(DATA.glob("*.txt"))}
NEW = "6.12.117+deb12-cloud-amd64"
LAB = """\
name: k
guests:
  own: {image: debian-12, memory: 256M}
  new: {image: debian-12, memory: 256M, kernel: "6.12"}
"""


@pytest.fixture
def world() -> Iterator[World]:
    with World(release="6.1.0-56-cloud-amd64") as made:
        made.indexes = dict(INDEXES)
        yield made


def lab_of(xdg: Path, text: str = LAB) -> Lab:
    (xdg / "lab").mkdir(exist_ok=True)
    (xdg / "lab" / "lab.yaml").write_text(text)
    return load_lab(xdg / "lab" / "lab.yaml")


def start(world: World, lab: Lab, name: str) -> str:
    """The release that the guest runs."""
    with lifecycle.guest_session(world.host, lab, lab.guest(name), silent) as guest:
        return guest.record.release


def test_the_image_s_own_kernel_is_looked_up_nowhere(xdg: Path, world: World) -> None:
    start(world, lab_of(xdg), "own")
    assert "update" not in world.asked


def test_another_kernel_is_looked_up_once_and_its_packages_are_in_the_seed(xdg: Path, world: World) -> None:
    lab = lab_of(xdg)
    world.release = NEW
    assert start(world, lab, "new") == NEW
    assert f"fetch linux-image-{NEW}=6.12.117-1~deb12u1 linux-headers-{NEW}=6.12.117-1~deb12u1" in world.asked
    assert b"0.deb" in world.seeds[-1] and b"1.deb" in world.seeds[-1]
    (base,) = paths.bases().iterdir()
    assert paths.read_json(base / "base.json")["release"] == NEW
    assert not list(base.glob("*.deb"))
    world.asked.clear()
    world.indexes.clear()
    with lifecycle.guest_session(world.host, lab, lab.guest("new"), silent, fresh=True):
        pass
    assert "update" not in world.asked, "a warm cache needs no network"


def test_a_kernel_of_a_further_suite_is_fetched_from_there(xdg: Path, world: World) -> None:
    world.release = "6.12.95+deb12-rt-amd64"
    start(world, lab_of(xdg, LAB.replace('"6.12"', "backports:rt")), "new")
    assert any(asked.startswith("fetch") and asked.endswith(" from bookworm-backports") for asked in world.asked)


def test_guests_with_different_kernels_share_the_image_and_not_the_base(xdg: Path, world: World) -> None:
    lab = lab_of(xdg)
    start(world, lab, "own")
    start(world, lab, "new")
    images = {paths.read_json(path)["image"] for path in paths.bases().glob("*/base.json")}
    assert len(list(paths.bases().iterdir())) == 2
    assert len(images) == 1
    assert world.asked.count("build-image") == 1


def test_a_kernel_that_is_not_there_is_said_with_its_line_and_those_there_are(xdg: Path, world: World) -> None:
    with pytest.raises(ConfigError, match=r"lab\.yaml:4: debian-12: no kernel matches '6\.13'$") as caught:
        start(world, lab_of(xdg, LAB.replace("6.12", "6.13")), "new")
    assert caught.value.hint is not None and "6.12.117+deb12" in caught.value.hint
    assert not list(paths.bases().glob("*"))


def test_the_kernels_of_an_image_are_listed_with_its_own(xdg: Path, world: World) -> None:
    found, own = lifecycle.available(world.host, "debian-12", None, silent)
    assert own == "6.1.0-56-cloud-amd64"
    assert {r.name for r in found} >= {own, NEW}
    assert dataclasses.asdict(found[-1])["suite"] == "bookworm-security"


# --- before there is an image --------------------------------------------------------------------------------------


def test_the_kernels_of_an_image_are_listed_without_building_it(xdg: Path, world: World) -> None:
    found, own = lifecycle.available(world.host, "debian-12", None, silent)
    assert NEW in {release.name for release in found}
    assert own == "6.1.0-56-cloud-amd64"
    assert world.asked == [f"update-release {SUITES}"]
    assert "6.12" in paths.read_json(paths.known_kernels()), "the shell completes it from now on"


SUITES = "bookworm bookworm-backports bookworm-updates bookworm-security"


def test_kernels_that_an_archive_lacks_are_errors_before_anything_is_built(xdg: Path, world: World) -> None:
    lab = lab_of(xdg)
    specs = [lab.guest(name) for name in ("own", "new", "own@6.99", "own@6.1")]
    with pytest.raises(ConfigError, match=r"lab\.yaml:2: debian-12: no kernel matches '6\.99'"):
        parallel.run_in_parallel(world.host, lab, specs, lambda spec, may_continue: None, silent)
    assert world.asked == [f"update-release {SUITES}"], "one question for all kernels of an image, and no image"
    world.asked.clear()
    lifecycle.check_kernels(world.host, lab, [lab.guest("own"), lab.guest("new")], silent)
    assert world.asked == [f"update-release {SUITES}"]


def test_an_image_that_exists_answers_itself(xdg: Path, world: World) -> None:
    lab = lab_of(xdg)
    start(world, lab, "own")
    world.asked.clear()
    lifecycle.check_kernels(world.host, lab, [lab.guest("own@6.99")], silent)
    assert world.asked == []
    lifecycle.available(world.host, "debian-12", None, silent)
    assert world.asked == ["update"]
