"""Test the messages of a first boot, and the size of a guest's disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.errors import ConfigError, LabError
from kmlab.common.events import Deadline, Event, Note
from kmlab.config import catalog
from kmlab.config.lab import load_lab
from kmlab.host.process import command
from kmlab.provision import lifecycle
from kmlab.testing import HOST_KEY, RELEASE, World
from tests.publisher import disk_image

WELL = tuple(f"<5>kmlab-bake: {words}" for words in (f"kernel {RELEASE}", f"hostkey {HOST_KEY}", f"done {RELEASE}"))
CLOUD_INIT = "cloud-init[462]: 2026-11-24 21:24:12,001 - "
ENDED = "cloud-init[471]: Cloud-init v. 24.1 finished at Tue, 24 Nov 2026 21:24:20 +0000. Datasource DataSourceNone."


BAKED = "{image: debian-12, packages: [gdb]}"
"""A guest that wants more than is in its image."""


def notes_of(world: World, folder: Path, guest: str = BAKED) -> list[str]:
    (folder / "lab.yaml").write_text(f"name: t\nguests:\n  g: {guest}\n")
    lab = load_lab(folder / "lab.yaml")
    heard: list[Event] = []
    with lifecycle.guest_session(world.host, lab, lab.guest("g"), heard.append):
        return [event.text for event in heard if isinstance(event, Note)]


def test_an_image_that_is_built_here_needs_no_first_boot(xdg: Path) -> None:
    with World() as world:
        notes_of(world, xdg, "{image: debian-12, packages: [strace], kernel: exact, sysctls: {kernel.panic: 1}}")
        assert world.asked == ["build-image", "start", "save", "stop", "restore"]
        assert world.seeds == []


@pytest.mark.parametrize("more", ["packages: [gdb]", "cmdline: slub_debug", "disk: 3G", "recipe: mine"])
def test_a_guest_with_additional_settings_needs_one(more: str, xdg: Path) -> None:
    (xdg / "guests" / "mine").mkdir(parents=True)
    (xdg / "guests" / "mine" / "recipe.yaml").write_text("family: mine\nlike: debian\npackages: [tcc]\n")
    with World() as world:
        notes_of(world, xdg, f"{{image: debian-12, {more}}}")
        assert len(world.seeds) == 1


def test_optional_packages_need_one(xdg: Path) -> None:
    (xdg / "guests" / "debian").mkdir(parents=True)
    shipped = Path(catalog.__file__).parents[2] / "guests" / "debian"
    for file in shipped.iterdir():
        (xdg / "guests" / "debian" / file.name).write_text(file.read_text())
    with (xdg / "guests" / "debian" / "recipe.yaml").open("a") as recipe:
        recipe.write("\noptional: [bpftrace]\n")
    with World() as world:
        notes_of(world, xdg, "{image: debian-12}")
        assert len(world.seeds) == 1


def test_a_lab_s_own_bake_is_run_in_a_first_boot(xdg: Path) -> None:
    (xdg / "guests" / "debian").mkdir(parents=True)
    shipped = Path(catalog.__file__).parents[2] / "guests" / "debian"
    for name in ("recipe.yaml", "idle.sh", "bake.sh", "user-data.yaml"):
        (xdg / "guests" / "debian" / name).write_text((shipped / name).read_text())
    with World() as world:
        notes_of(world, xdg, "{image: debian-12}")
        assert len(world.seeds) == 1


def test_a_successful_first_boot_has_no_notes(xdg: Path) -> None:
    with World() as world:
        assert notes_of(world, xdg) == []


def test_cloud_init_s_warnings_are_shown_even_if_the_base_was_baked(xdg: Path) -> None:
    with World() as world:
        world.first_boot = (f"{CLOUD_INIT}util.py[WARNING]: Running module growpart failed \x1b[31m", *WELL)
        (note,) = notes_of(world, xdg)
    assert note == "cloud-init: 2026-11-24 21:24:12,001 - util.py[WARNING]: Running module growpart failed \\x1b[31m"


def test_when_cloud_init_ends_without_baking_its_own_error_is_the_error(xdg: Path) -> None:
    with World() as world:
        world.first_boot = (f"{CLOUD_INIT}util.py[ERROR]: Failed loading yaml blob", ENDED)
        with pytest.raises(LabError, match=r"cloud-init ended before the base was baked: .*Failed loading yaml blob"):
            notes_of(world, xdg)


def test_without_an_error_of_cloud_init_its_last_line_is_the_error(xdg: Path) -> None:
    with World() as world:
        world.first_boot = (ENDED,)
        with pytest.raises(LabError, match=r"ended before the base was baked: .*DataSourceNone"):
            notes_of(world, xdg)


def test_a_newer_kernel_than_the_image_s_is_reported(xdg: Path) -> None:
    with World() as world:
        world.first_boot = (WELL[0], "<5>kmlab-bake: note it restarts into 6.1.0-99", *WELL[1:])
        assert notes_of(world, xdg) == ["it restarts into 6.1.0-99"]


def test_headers_that_left_the_archive_are_an_error_with_kernel_exact_and_its_remedy(xdg: Path) -> None:
    gone = (
        "<5>kmlab-bake: kernel 6.1.0-52-cloud-amd64",
        "<5>kmlab-bake: step reading the package lists",
        "<5>kmlab-bake: error the archive has no linux-headers-6.1.0-52-cloud-amd64 any more, "
        "and `kernel: exact` wants the image's own kernel 6.1.0-52-cloud-amd64",
    )
    with World() as world, pytest.raises(LabError, match=r"no linux-headers-6\.1\.0-52-cloud-amd64 any more") as error:
        world.first_boot = gone
        notes_of(world, xdg, "{image: debian-12, kernel: exact, packages: [gdb]}")
    assert error.value.hint is not None and "without `kernel: exact`, kmlab uses a newer kernel" in error.value.hint
    assert list(paths.bases().iterdir()) == []


def virtual_size() -> int:
    (disk,) = paths.bases().glob("*/disk.qcow2")
    said = command.run(["qemu-img", "info", "--output", "json", disk], deadline=Deadline(30)).output
    return int(json.loads(said)["virtual-size"])


def test_a_disk_is_as_large_as_its_image_or_as_requested(xdg: Path) -> None:
    with World() as world:
        notes_of(world, xdg, "{image: debian-12}")
        assert virtual_size() == 1 << 20
        paths.remove_tree(paths.bases())
        notes_of(world, xdg, "{image: debian-12, disk: 3G}")
        assert virtual_size() == 3 << 30


def test_a_published_image_s_disk_has_space_for_a_compiler(xdg: Path) -> None:
    (xdg / "own.img").write_bytes(disk_image(xdg, "2G"))
    with World() as world:
        notes_of(world, xdg, "{image: {path: own.img, family: ubuntu}}")
    assert virtual_size() == 8 << 30


def test_a_disk_smaller_than_its_image_is_refused_with_its_line(xdg: Path) -> None:
    (xdg / "own.img").write_bytes(disk_image(xdg, "2G"))
    with (
        World() as world,
        pytest.raises(ConfigError, match=r"lab\.yaml:3: the disk is smaller than the image, which has 2\.0 GiB"),
    ):
        notes_of(world, xdg, "{image: {path: own.img, family: ubuntu}, disk: 1G}")
