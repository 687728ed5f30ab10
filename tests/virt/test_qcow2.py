"""Test headers of qcow2 files: those of QEMU's tools are accepted, and those that open other files are refused."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmlab.common.errors import ImageError
from kmlab.virt import qcow2
from tests.publisher import disk_image


def checked(content: bytes) -> qcow2.Header:
    return qcow2.check(content[: qcow2.HEAD], len(content), "a.img")


def patched(content: bytes, offset: int, form: str, value: int) -> bytes:
    size = struct.calcsize(form)
    return content[:offset] + struct.pack(form, value) + content[offset + size :]


@pytest.mark.parametrize("options", [("-o", "compat=0.10"), ("-o", "compat=1.1"), ("-o", "cluster_size=2M")])
def test_images_of_qemu_img_are_accepted(tmp_path: Path, options: tuple[str, ...]) -> None:
    header = checked(disk_image(tmp_path, "3G", *options))
    assert header.virtual_size == 3 << 30
    assert header.version == (2 if "compat=0.10" in options else 3)


def test_a_compressed_image_with_extended_entries_is_accepted(tmp_path: Path) -> None:
    made = disk_image(tmp_path, "1G", "-o", "compression_type=zstd,extended_l2=on,cluster_size=128k")
    assert checked(made).virtual_size == 1 << 30


def test_a_backing_file_is_refused(tmp_path: Path) -> None:
    below = tmp_path / "below.qcow2"
    below.write_bytes(disk_image(tmp_path))
    with pytest.raises(ImageError, match="backing file"):
        checked(disk_image(tmp_path, "16M", "-F", "qcow2", "-b", str(below)))


def test_a_data_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="another file"):
        checked(disk_image(tmp_path, "16M", "-o", f"data_file={tmp_path / 'data'}"))


def test_a_disk_with_snapshots_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "made.qcow2"
    made.write_bytes(disk_image(tmp_path))
    subprocess.run(["qemu-img", "snapshot", "-c", "one", str(made)], check=True, timeout=60)
    with pytest.raises(ImageError, match="snapshots"):
        checked(made.read_bytes())


def test_a_raw_disk_is_refused() -> None:
    with pytest.raises(ImageError, match="it is not a qcow2 file"):
        checked(bytes(4096))


WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "version 4": (lambda c: patched(c, 4, ">I", 4), "version 4"),
    "a backing file's name": (lambda c: patched(c, 8, ">Q", 0x200), "backing file"),
    "a backing file's length": (lambda c: patched(c, 16, ">I", 7), "backing file"),
    "clusters of 2^40 bytes": (lambda c: patched(c, 20, ">I", 40), "clusters"),
    "a disk of 2^60 bytes": (lambda c: patched(c, 24, ">Q", 1 << 60), "its disk has"),
    "no disk": (lambda c: patched(c, 24, ">Q", 0), "its disk has 0 bytes"),
    "encryption": (lambda c: patched(c, 32, ">I", 1), "encrypted"),
    "an L1 table far away": (lambda c: patched(c, 40, ">Q", 1 << 40), "L1 table"),
    "an L1 table in the header": (lambda c: patched(c, 40, ">Q", 0), "L1 table"),
    "a small L1 table": (lambda c: patched(c, 24, ">Q", 200 << 30), "L1 table is too small"),
    "a refcount table far away": (lambda c: patched(c, 48, ">Q", 1 << 40), "refcount table"),
    "a dirty bit": (lambda c: patched(c, 72, ">Q", 1), "not closed properly"),
    "a corrupt bit": (lambda c: patched(c, 72, ">Q", 2), "corrupt"),
    "a data file's bit": (lambda c: patched(c, 72, ">Q", 4), "another file"),
    "a feature of the future": (lambda c: patched(c, 72, ">Q", 1 << 9), "unknown features"),
    "a header of 2^31 bytes": (lambda c: patched(c, 100, ">I", 1 << 31), "header is damaged"),
    "a backing file as an extension": (lambda c: patched(c, 112, ">I", 0xE2792ACA), "backing file"),
    "a data file as an extension": (lambda c: patched(c, 112, ">I", 0x44415441), "data file"),
    "an extension without an end": (lambda c: patched(c, 116, ">I", 1 << 30), "no end"),
    "only the first bytes": (lambda c: c[:60], "header is truncated"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_header_that_is_wrong_is_refused(tmp_path: Path, what: str) -> None:
    change, why = WRONG[what]
    made = disk_image(tmp_path)
    checked(made)
    with pytest.raises(ImageError, match=why):
        checked(change(made))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 400))
def test_any_bytes_give_a_header_or_an_error(junk: bytes, at: int) -> None:
    head = b"QFI\xfb" + struct.pack(">I", 3) + bytes(4000)
    content = head[:at] + junk + head[at + len(junk) :]
    try:
        header = qcow2.check(content, 1 << 30, "a.img")
    except ImageError:
        return
    assert 0 < header.virtual_size <= qcow2.LARGEST
