"""An image goes to another machine as one file, and an altered file adds nothing to the cache."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import silent
from kmlab.config.lab import Lab, load_lab
from kmlab.provision import cache
from kmlab.provision.images.image import build_image
from kmlab.provision.images.image_file import export_image, import_image
from kmlab.provision.kernels import kernel_store
from kmlab.provision.kernels.built_kernel import BuiltKernelRecord
from kmlab.testing import World
from tests import documents
from tests.pages import KMLAB


@pytest.fixture
def exported(xdg: Path, world: World) -> Path:
    """An exported image that the cache does not have any more."""
    disk = build_image(world.host, "debian-12", None, silent)
    file = xdg / "image.tar"
    assert export_image("debian-12", file, None, None).path == file
    paths.remove_tree(disk.parent)
    return file


def altered(file: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Path:
    """Write the archive again with other files in it."""
    with tarfile.open(file) as archive:
        files = {each.name: read.read() for each in archive.getmembers() if (read := archive.extractfile(each))}
    with tarfile.open(file, "w") as archive:
        for name, content in change(files).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def test_an_image_that_was_exported_is_one_that_guests_use(exported: Path, world: World) -> None:
    imported = import_image(exported, None)
    assert (imported.name, imported.note) == ("debian-12", None)
    world.asked.clear()
    assert build_image(world.host, "debian-12", None, silent) == imported.path
    assert "build-image" not in world.asked
    assert imported.path.stat().st_mode & 0o222 == 0
    assert import_image(exported, None) == imported, "a second time changes nothing"


def test_an_image_for_another_ssh_key_is_imported_with_a_note(exported: Path) -> None:
    for path in paths.identity_key().parent.glob("id_ed25519*"):
        path.unlink()
    assert "another ssh key" in (import_image(exported, None).note or "")


def test_an_image_that_is_not_in_the_cache_is_an_error(xdg: Path) -> None:
    with pytest.raises(ConfigError, match="the cache has no image debian-12"):
        export_image("debian-12", xdg / "x.tar", None, None)


def _other_disk(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: b"other" if name.endswith(".qcow2") else content for name, content in files.items()}


def _renamed(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {name + path[path.index("/") :]: content for path, content in files.items()}


def _with_file(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {**files, name: b"x"}


@pytest.mark.parametrize(
    "change",
    [
        _other_disk,
        _renamed(".."),
        _renamed("."),
        _renamed("ubuntu-24.04-x86_64-0123456789abcdef"),
        _renamed("debian-12"),
        _with_file("/etc/cron.d/x"),
        _with_file("../x"),
        _with_file("debian-12-x86_64-0123456789abcdef/x"),
        lambda files: {},
    ],
)
def test_a_file_that_was_changed_adds_nothing(
    exported: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]
) -> None:
    with pytest.raises(ConfigError, match=r"image\.tar: "):
        import_image(altered(exported, change), None)
    assert list(paths.images().glob("*")) == []


def test_a_record_that_does_not_fit_the_disk_adds_nothing(exported: Path) -> None:
    def change(files: dict[str, bytes]) -> dict[str, bytes]:
        changed = {name: content for name, content in files.items() if not name.endswith("sums.json")}
        for name, content in changed.items():
            if name.endswith("image.json"):
                about = json.loads(content)
                about["files"]["disk.qcow2"]["sha256"] = "0" * 64
                changed[name] = json.dumps(about).encode()
        return changed

    with pytest.raises(ConfigError, match="did not write this file"):
        import_image(altered(exported, change), None)
    assert list(paths.images().glob("*")) == []


@pytest.mark.parametrize("content", [b"", b"text", b"\x1f\x8b" + bytes(100)])
def test_a_file_that_is_no_archive_is_one_clear_error(xdg: Path, content: bytes) -> None:
    file = xdg / "image.tar"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="did not write this file"):
        import_image(file, None)
    with pytest.raises(ConfigError, match="cannot read this file"):
        import_image(xdg / "nowhere", None)


def test_the_key_of_the_cache_changes_with_what_guests_are_made_of(lab: Lab) -> None:
    first = cache.cache_key(lab)
    assert first == cache.cache_key(load_lab(lab.path))

    def key_with(old: str, new: str) -> str:
        moved = lab.folder / "elsewhere" / "lab.yaml"
        moved.parent.mkdir(exist_ok=True)
        moved.write_text(lab.path.read_text().replace(old, new))
        return cache.cache_key(load_lab(moved))

    assert key_with("memory: 256M", "memory: 512M") == first, "not what differs only at the start, and not the place"
    for new in ("image: debian-13", "image: debian-12, kernel: backports", "image: debian-12, packages: [gdb]"):
        assert key_with("image: debian-12", new) != first


def test_a_kernel_goes_the_same_way(xdg: Path) -> None:
    record = BuiltKernelRecord(
        "0123456789abcdef", "a", "6.1-debug", "debug", "debian-12", "x86_64", "linux", "gcc", 1.0
    )
    paths.write_json(record.folder / "kernel.json", dataclasses.asdict(record))
    (record.folder / "vmlinuz").write_bytes(b"kernel")
    assert kernel_store.export_kernel("0123", xdg / "k.tar") == record
    paths.remove_tree(record.folder)
    assert kernel_store.import_kernel(xdg / "k.tar") == record
    assert (record.folder / "vmlinuz").read_bytes() == b"kernel"
    with pytest.raises(ConfigError, match="did not write this file"):
        kernel_store.import_kernel(altered(xdg / "k.tar", _renamed("other")))


def test_the_command_prints_the_key_and_what_to_keep(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    KMLAB.main(["cache", "key", "--json", "--lab", str(lab.path)], standalone_mode=False)
    printed = capsys.readouterr().out
    documents.check(printed)
    answer = json.loads(printed)
    assert answer["key"] == cache.cache_key(lab)
    assert str(paths.images()) in answer["paths"]
