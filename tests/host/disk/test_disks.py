"""Test disk files: make them with the real programs and read them back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pycdlib
import pytest

from kmlab.common.errors import CommandFailed, ImageError
from kmlab.common.events import Deadline
from kmlab.host.disk import disks
from kmlab.host.process import command


def output_of(*argv: str | Path) -> str:
    return command.run(argv, deadline=Deadline(30)).output


def read_iso(seed: Path, path: str) -> str:
    image, content = pycdlib.PyCdlib(), io.BytesIO()
    image.open(str(seed))
    try:
        image.get_file_from_iso_fp(content, rr_path=path)
    finally:
        image.close()
    return content.getvalue().decode()


def test_a_seed_bears_the_label_that_cloud_init_looks_for(tmp_path: Path) -> None:
    seed = tmp_path / "seed.iso"
    disks.make_seed(seed, {"user-data": "#cloud-config\n"})
    # The volume identifier of the primary volume descriptor, ECMA-119 8.4.7.
    assert seed.read_bytes()[0x8028:0x8048].rstrip() == b"cidata"


def test_a_seed_s_files_keep_name_and_content(tmp_path: Path) -> None:
    files = {"user-data": "#cloud-config\nx: Grüße\n" * 5000, "meta-data": "instance-id: a\n", "network-config": ""}
    disks.make_seed(tmp_path / "seed.iso", files)
    assert {name: read_iso(tmp_path / "seed.iso", f"/{name}") for name in files} == files


def test_an_overlay_is_empty_and_uses_its_backing_file(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    output_of("qemu-img", "create", "-q", "-f", "qcow2", base, "64M")
    disks.freeze(base)
    disks.make_overlay(overlay, base, Deadline(30))
    about = json.loads(output_of("qemu-img", "info", "--output", "json", overlay))
    assert about["format"] == "qcow2"
    assert about["backing-filename"] == str(base)
    assert about["backing-filename-format"] == "qcow2"
    assert about["virtual-size"] == 64 << 20
    assert disks.size_on_disk(tmp_path) < 2 << 20


def test_an_overlay_on_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="absent"):
        disks.make_overlay(tmp_path / "overlay.qcow2", tmp_path / "absent.qcow2", Deadline(30))


def test_a_disk_has_an_esp_with_the_boot_files_and_the_root_file_system(tmp_path: Path) -> None:
    root, shim, menu = tmp_path / "root.img", tmp_path / "shim", tmp_path / "menu"
    with root.open("wb") as file:
        file.truncate(16 << 20)
    output_of("mke2fs", "-q", "-t", "ext4", "-L", "kmlab-root", root)
    shim.write_bytes(b"MZ shim")
    menu.write_text("configfile\n")
    target = tmp_path / "disk.qcow2"
    esp = {"EFI/BOOT/BOOTX64.EFI": shim, "EFI/debian/grub.cfg": menu}
    disks.make_disk(target, root=root, esp=esp, deadline=Deadline(60))
    assert {path.name for path in tmp_path.iterdir()} == {"root.img", "shim", "menu", "disk.qcow2"}

    raw = tmp_path / "raw"
    output_of("qemu-img", "convert", "-O", "raw", target, raw)
    table = json.loads(output_of("sfdisk", "--json", raw))["partitiontable"]
    assert table["label"] == "gpt"
    first, second = table["partitions"]
    assert first["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    assert [first["name"], second["name"]] == ["ESP", "root"]
    assert output_of("mcopy", "-i", f"{raw}@@{first['start'] * 512}", "::EFI/BOOT/BOOTX64.EFI", "-") == "MZ shim"
    assert output_of("mcopy", "-i", f"{raw}@@{first['start'] * 512}", "::EFI/debian/grub.cfg", "-") == "configfile\n"
    with raw.open("rb") as file:
        file.seek(second["start"] * 512)
        assert file.read(16 << 20) == root.read_bytes()


def test_a_file_is_read_from_a_file_system_without_a_mount(tmp_path: Path) -> None:
    tree, image = tmp_path / "tree", tmp_path / "ext4"
    tree.mkdir()
    (tree / "shim").write_bytes(b"MZ\0\xff")
    output_of("mke2fs", "-q", "-t", "ext4", "-d", tree, image, "4M")
    disks.read_from_filesystem(image, "/shim", tmp_path / "out", Deadline(10))
    assert (tmp_path / "out").read_bytes() == b"MZ\0\xff"
    with pytest.raises(ImageError, match="has no file /absent"):
        disks.read_from_filesystem(image, "/absent", tmp_path / "none", Deadline(10))


def test_a_digest_is_sha256_and_reports_progress(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    heard: list[tuple[int, int]] = []
    assert disks.digest(tmp_path / "abc", lambda done, total: heard.append((done, total))) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert heard == [(3, 3)]


def test_a_copy_of_a_frozen_file_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    disks.freeze(tmp_path / "a")
    disks.copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600


def test_size_on_disk_does_not_count_holes(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert disks.size_on_disk(tmp_path) < 1 << 20
    assert disks.size_on_disk(tmp_path / "absent") == 0
