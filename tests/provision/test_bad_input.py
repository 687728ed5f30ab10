"""Test problems of the host: each ends in one clear error and leaves nothing incomplete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from kmlab.common import paths
from kmlab.common.errors import ConfigError, GuestUnreachable, HypervisorError, ImageError, KmlabError, LabError
from kmlab.common.events import Deadline, silent
from kmlab.config.lab import Lab, load_lab
from kmlab.host.disk import disks
from kmlab.host.hypervisor import hypervisor
from kmlab.host.process import command
from kmlab.provision import cache, lifecycle
from kmlab.provision.plan import integrity
from kmlab.testing import World


class Space(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def lab(xdg: Path) -> Lab:
    (xdg / "lab.yaml").write_text("name: t\nguests:\n  debian: {image: debian-12, memory: 256M, packages: [gdb]}\n")
    return load_lab(xdg / "lab.yaml")


def up(world: World, lab: Lab) -> None:
    with lifecycle.guest_session(world.host, lab, lab.guest("debian"), silent):
        pass


def refused(kind: type[KmlabError], work: Callable[[], object]) -> KmlabError:
    with pytest.raises(kind) as caught:
        work()
    assert "\n" not in caught.value.message
    return caught.value


def half_made() -> list[Path]:
    return [path for path in paths.work().glob("*") if path.is_dir()]


def only(pattern: str) -> Path:
    (match,) = paths.cache_home().glob(pattern)
    return match


def alter(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


# --- the host ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["state", "cache"])
def test_a_state_or_cache_folder_that_is_a_file_is_reported(xdg: Path, world: World, lab: Lab, home: str) -> None:
    (xdg / home).write_text("")
    error = refused(LabError, lambda: up(world, lab))
    assert error.message.startswith(f"{xdg / home}/kmlab")
    assert "cannot make this folder: Not a directory" in error.message
    assert error.hint is not None and "XDG_STATE_HOME" in error.hint


def test_a_path_that_is_too_long_for_a_socket_is_reported_before_libvirt_starts(xdg: Path) -> None:
    root = xdg / ("x" * 90) / "v"

    def open_it() -> None:
        with hypervisor.opened(hypervisor.EMBEDDED, root, Deadline(5)):
            pass

    error = refused(LabError, open_it)
    assert "the path is too long for a socket" in error.message
    assert not root.exists()


def test_a_missing_program_is_reported_with_its_package(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused(LabError, lambda: up(world, lab))
    assert error.message.startswith("qemu-system-")
    assert error.hint is not None and "apt-get install qemu-system-" in error.hint
    assert world.asked == []


def test_a_full_disk_is_reported_before_the_image_is_built(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(100 << 30, 99 << 30, 1 << 30))
    error = refused(LabError, lambda: up(world, lab))
    assert error.message.endswith("building image 'debian-12' needs 4.0 GiB, 1.0 GiB are free")
    assert error.hint is not None and "kmlab image prune" in error.hint
    assert world.asked == []
    assert half_made() == []


def test_a_disk_that_fills_while_a_base_is_baked_is_one_error_and_the_next_one_works(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([100 << 30, 100 << 30])
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: Space(100 << 30, 0, next(left, 5 << 20)))
        error = refused(LabError, lambda: up(world, lab))
    assert error.message == f"{paths.work()}: the disk of guest 'debian' needs 64 MiB, 5 MiB are free"
    assert error.hint is not None and "XDG_CACHE_HOME" in error.hint
    assert half_made() == [] and list(paths.bases().iterdir()) == []
    up(world, lab)


def test_a_disk_that_fills_while_a_checkpoint_boots_is_reported_at_once_and_the_next_one_works(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(world, lab)
    paths.remove_tree(paths.checkpoints())
    world.refusals["shell"] = GuestUnreachable("no answer on ssh")
    left = iter([100 << 30])
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: Space(100 << 30, 0, next(left, 0)))
        error = refused(LabError, lambda: up(world, lab))
    assert error.message == f"{paths.work()}: the disk of guest 'debian' needs 64 MiB, 0 MiB are free"
    assert half_made() == [] and list(paths.checkpoints().iterdir()) == []
    world.refusals.clear()
    up(world, lab)


def test_a_full_disk_while_memory_is_saved_gives_the_remedy() -> None:
    message = (
        "operation failed: /usr/lib/libvirt/libvirt_iohelper: failure with /c/memory: "
        "Unable to write /c/memory: No space left on device"
    )
    words = ["sh", "-c", 'read line; printf "%s\\n" "$0"', json.dumps({"error": message})]
    with command.Conversation(words, {}) as worker:
        error = refused(HypervisorError, lambda: hypervisor.Hypervisor(worker).save("kmlab", Path("/c/memory")))
    assert error.message == f"libvirt could not save the guest's memory: {message}"
    assert error.hint is not None and "kmlab image prune" in error.hint


def test_a_build_that_fails_leaves_nothing_and_the_next_one_works(world: World, lab: Lab) -> None:
    world.refusals["build-image"] = ImageError("could not build bookworm for x86_64: no network")
    refused(ImageError, lambda: up(world, lab))
    assert half_made() == []
    assert list(paths.images().iterdir()) == []
    world.refusals.clear()
    up(world, lab)


def test_a_bake_that_is_interrupted_leaves_nothing_and_the_next_one_works(world: World, lab: Lab) -> None:
    world.refusals["start"] = HypervisorError("libvirt could not start the guest: no")
    refused(HypervisorError, lambda: up(world, lab))
    assert half_made() == []
    assert list(paths.bases().iterdir()) == []
    world.refusals.clear()
    up(world, lab)


def test_incomplete_artifacts_of_a_killed_kmlab_are_removed(world: World, lab: Lab) -> None:
    up(world, lab)
    key = only("bases/*").name
    left = paths.work() / f"{key}.abcdef"
    left.mkdir()
    (left / "disk.qcow2").write_text("half")
    lifecycle.sweep()
    assert half_made() == []


# --- the cache -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["images/*/image.json", "bases/*/base.json", "checkpoints/*/checkpoint.json"])
@pytest.mark.parametrize("content", [b"", b'{"sha256": "00', b"\xff\xfe", b"[]", b'{"release": "6.1"}'])
def test_a_damaged_record_is_reported_with_the_remedy(world: World, lab: Lab, pattern: str, content: bytes) -> None:
    up(world, lab)
    record = only(pattern)
    alter(record, content)
    error = refused(ImageError, lambda: up(world, lab))
    assert error.message == f"{record}: this record is missing or damaged"
    assert error.hint == f"remove it, and kmlab makes it again: rm -rf {record.parent}"
    paths.remove_tree(record.parent)
    up(world, lab)


@pytest.mark.parametrize("pattern", ["images/*/disk.qcow2", "bases/*/disk.qcow2", "checkpoints/*/memory"])
def test_a_truncated_file_of_the_cache_is_reported(world: World, lab: Lab, pattern: str) -> None:
    up(world, lab)
    file = only(pattern)
    size = file.stat().st_size
    alter(file, file.read_bytes()[:-10])
    error = refused(ImageError, lambda: up(world, lab))
    assert error.message == f"{file}: truncated or changed: {size - 10} bytes instead of {size}"


@pytest.mark.parametrize("pattern", ["images/*/disk.qcow2", "bases/*/disk.qcow2", "checkpoints/*/memory"])
def test_a_changed_file_of_the_cache_is_reported(world: World, lab: Lab, pattern: str) -> None:
    up(world, lab)
    file = only(pattern)
    alter(file, b"\xee" * file.stat().st_size)
    error = refused(ImageError, lambda: up(world, lab))
    assert error.message == f"{file}: changed after it was made"


@pytest.mark.parametrize(
    "pattern",
    [
        "images/*/disk.qcow2",
        "bases/*/disk.qcow2",
        "bases/*/nvram.fd",
        "checkpoints/*/memory",
        "checkpoints/*/disk.qcow2",
        "checkpoints/*/nvram.fd",
    ],
)
def test_a_file_whose_size_and_time_were_put_back_is_reported(world: World, lab: Lab, pattern: str) -> None:
    up(world, lab)
    file = only(pattern)
    before = file.stat()
    content = file.read_bytes() or b"\0"
    alter(file, content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    error = refused(ImageError, lambda: up(world, lab))
    assert error.message.startswith(f"{file}: ")
    assert [problem for _, problem in cache.verify(silent, None) if problem] == [error.message]


def test_files_are_read_once_in_a_boot_of_the_host(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    up(world, lab)
    digested: list[str] = []
    digest = disks.digest

    def heard(path: Path) -> str:
        digested.append(path.name)
        return digest(path)

    monkeypatch.setattr(disks, "digest", heard)
    up(world, lab)
    assert digested == []
    (tmp_path / "boot").write_text("the next boot")
    monkeypatch.setattr(integrity, "_BOOT", tmp_path / "boot")
    up(world, lab)
    assert sorted(digested) == ["disk.qcow2", "disk.qcow2", "disk.qcow2", "memory", "nvram.fd", "nvram.fd"]
    digested.clear()
    up(world, lab)
    assert digested == []


def test_a_file_that_was_only_copied_is_still_good(world: World, lab: Lab) -> None:
    up(world, lab)
    file = only("bases/*/disk.qcow2")
    alter(file, file.read_bytes())
    up(world, lab)
    assert only("bases/*/disk.qcow2") == file
    assert world.asked.count("build-image") == 1


def test_a_missing_file_of_the_cache_is_reported(world: World, lab: Lab) -> None:
    up(world, lab)
    only("checkpoints/*/memory").unlink()
    error = refused(ImageError, lambda: up(world, lab))
    assert error.message.endswith("memory: No such file or directory")


def test_verify_reads_every_byte_even_if_size_and_time_are_right(world: World, lab: Lab) -> None:
    up(world, lab)
    assert [problem for _, problem in cache.verify(silent, None)] == [None, None, None]
    file = only("images/*/disk.qcow2")
    about = paths.read_json(only("images/*/image.json"))
    alter(file, b"\xee" * file.stat().st_size)
    paths.write_json(only("images/*/image.json"), {**about, "mtime_ns": file.stat().st_mtime_ns})
    assert [problem for name, problem in cache.verify(silent, None) if name.startswith("images/")] == [
        f"{file}: changed after it was made"
    ]


def test_prune_keeps_what_a_guest_uses_and_removes_the_rest(world: World, lab: Lab) -> None:
    up(world, lab)
    assert cache.prune() == ([], 0)
    lifecycle.destroy_lab(world.host, lab, [], all_state=False, report=silent)
    removed, freed = cache.prune()
    assert sorted(name.split("/")[0] for name in removed) == ["bases", "checkpoints", "images"]
    assert freed > 0


# --- the guest's record --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "debian"}', b'{"from": "another version"}'])
def test_a_damaged_record_of_a_guest_only_costs_a_restore(world: World, lab: Lab, content: bytes) -> None:
    up(world, lab)
    record = lifecycle.lab_files(lab).guest("debian").record
    record.write_bytes(content)
    world.asked.clear()
    up(world, lab)
    assert "restore" in world.asked
    assert len([m for m in world.machines.values() if m.runs]) == 1


def test_a_missing_image_of_the_lab_is_reported_before_anything_is_made(xdg: Path, world: World) -> None:
    (xdg / "lab.yaml").write_text("name: t\nguests:\n  g: {image: debain-12}\n")
    lab = load_lab(xdg / "lab.yaml")

    def enter() -> None:
        with lifecycle.guest_session(world.host, lab, lab.guest("g"), silent):
            pass

    error = refused(ConfigError, enter)
    assert error.message.endswith("lab.yaml:3: unknown image 'debain-12'")
    assert not paths.cache_home().exists()
