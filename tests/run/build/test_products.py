"""What a build hands back: never more than kmlab may hold, and a .ko that lies is the build's failure, not kmlab's."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kmlab.common.events import Deadline, Event
from kmlab.host.process.sandbox import Sandbox, SandboxResult
from kmlab.kernel.signing.signature import MAGIC, PKCS7, TRAILER
from kmlab.run import run
from kmlab.run.build import make as make_module
from kmlab.run.build import products
from kmlab.run.build.make import build_in_sandbox
from kmlab.run.build.products import BuildResult
from kmlab.run.build.request import plain_request
from kmlab.testing import Act, module_image
from tests.kernel.symbols.test_ko_crafted import line_range_zero
from tests.places import TEST_DATA
from tests.story import OOPS, Go, notes, step

KO = (TEST_DATA / "ko/tiny_loop.ko").read_bytes()
KO_WITH_LINES = (TEST_DATA / "ko/frames.ko").read_bytes()


def _nothing(folder: Path) -> None:
    """A make that makes nothing."""


@dataclass(frozen=True, slots=True)
class Box(Sandbox):
    """A sandbox in which make does what the test says."""

    make: Callable[[Path], None] = _nothing

    def run(self, *_: Any, **__: Any) -> SandboxResult:
        self.make(self.folder)
        return SandboxResult(0, "")


def built(tmp_path: Path, make: Callable[[Path], None]) -> BuildResult:
    source = tmp_path / "src"
    source.mkdir()
    (source / "Kbuild").write_text("obj-m := tiny_loop.o\n")
    box = Box(tmp_path, tmp_path / "builds/m", "m", make=make)
    return build_in_sandbox(box, plain_request("m", source), "6.1.0-9-amd64", Deadline(60), lambda line: None)


def test_sparse_files_count_with_the_bytes_they_seem_to_hold(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        for number in range(40):
            with (folder / f"s{number}.ko").open("wb") as file:
                file.truncate(256 << 20)

    result = built(tmp_path, make)
    assert not result.ok and not result.images and not result.undelivered
    assert result.reason == "the build left more than 512 MiB of modules and programs: does its Makefile fill files?"


def test_one_file_larger_than_all_that_is_taken_is_too_much(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "m.ko").write_bytes(KO)
        with (folder / "vast.ko").open("wb") as file:
            file.truncate(1 << 40)

    assert "more than 512 MiB" in (built(tmp_path, make).reason or "")


def test_programs_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(folder: Path) -> None:
        (folder / "m.ko").write_bytes(KO)
        for name in ("one", "two"):
            (folder / name).write_bytes(b"\x7fELF" + bytes(2 << 20))
            (folder / name).chmod(0o755)

    monkeypatch.setattr(products, "LARGEST_PRODUCTS", 3 << 20)
    result = built(tmp_path, make)
    assert not result.ok and not result.undelivered and not result.images
    assert "more than 3 MiB of modules and programs" in (result.reason or "")


def test_very_many_files_are_too_much(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        for number in range(2049):
            (folder / f"{number}.ko").write_bytes(b"")

    assert "more than 2048 modules and programs" in (built(tmp_path, make).reason or "")


def test_what_is_left_of_a_large_tree_is_found_and_nothing_else_is_read(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "m.ko").write_bytes(KO)
        (folder / "run").write_bytes(b"\x7fELF")
        (folder / "run").chmod(0o755)
        os.mkfifo(folder / "pipe.ko")
        (folder / "link.ko").symlink_to("/etc/passwd")
        (folder / "large.o").touch()
        os.truncate(folder / "large.o", 1 << 40)

    result = built(tmp_path, make)
    assert result.ok, result.reason
    assert dict(result.undelivered) == {"m.ko": KO, "run": b"\x7fELF"}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"m.ko": KO[:-100]}, "m.ko: is cut short"),
        ({"m.ko": b""}, "m.ko: is not a kernel module"),
        ({"m.ko": KO, "sub/m.ko": KO}, "two modules are called"),
        ({"m\x1b[31m\udcff.ko": b"\x7fELF"}, r"m\x1b[31m"),
    ],
)
def test_modules_that_cannot_be_are_the_build_s_failure(tmp_path: Path, files: dict[str, bytes], why: str) -> None:
    def make(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    result = built(tmp_path, make)
    assert not result.ok and not result.images
    assert (result.reason or "").startswith("the built module cannot be loaded: ") and why in (result.reason or "")


# --- out of a guest ------------------------------------------------------------------------------------------------


def archive(**sizes: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as members:
        for name, size in sizes.items():
            member = tarfile.TarInfo(f"./{name}.ko")
            member.size = size
            members.addfile(member, io.BytesIO(bytes(size)))
    return buffer.getvalue()


def test_an_archive_of_the_guest_s_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_module._unpack(archive(a=1000, b=2000)).files.keys() == {"a.ko", "b.ko"}
    monkeypatch.setattr(products, "LARGEST_PRODUCTS", 2500)
    assert make_module._unpack(archive(a=1000, b=2000)).excess


def test_a_sparse_member_counts_with_the_bytes_it_seems_to_hold() -> None:
    member = tarfile.TarInfo("a.ko")
    member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(1 << 40)}
    member.pax_headers["GNU.sparse.map"] = "0,0"
    assert make_module._unpack(member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)).excess


@pytest.mark.parametrize("at", range(0, 512, 7))
def test_a_damaged_archive_holds_its_files_whole_or_none(at: int) -> None:
    damaged = bytearray(archive(a=1000, b=2000))
    for value in (0x00, 0x80, 0xFF):
        damaged[at : at + 3] = bytes([value]) * 3
        sizes = {name: len(content) for name, content in make_module._unpack(bytes(damaged)).files.items()}
        assert sizes in ({}, {"a.ko": 1000, "b.ko": 2000})


def test_a_compressed_archive_is_not_unpacked() -> None:
    import gzip

    assert make_module._unpack(gzip.compress(archive(a=1000))).files == {}


# --- a run of it ---------------------------------------------------------------------------------------------------

LYING = module_image("hello") + b"?" + TRAILER.pack(0, 0, PKCS7, 0, 0, bytes(3), 1 << 30) + MAGIC
"""Its signature claims to be longer than the file."""


def test_a_module_that_cannot_be_signed_is_the_build_s_failure(go: Go) -> None:
    result = go(options=run.Options(sign="wrong-key"), images={"hello.ko": LYING})
    assert (result.outcome, step(result, "sign")) == ("build-failed", "failed")
    assert (result.reason or "").startswith("the built module cannot be signed: the module's signature claims")
    assert "load" not in [s.name for s in result.steps]


@pytest.mark.parametrize("image", [b"", b"\x7fELF", module_image("hello")[:-60], b"\x7fELF" + b"\xff" * 4000])
def test_a_module_that_is_none_is_the_build_s_failure(go: Go, image: bytes) -> None:
    result = go(images={"hello.ko": image})
    assert result.outcome == "build-failed"
    assert (result.reason or "").startswith("the built module cannot be loaded: hello.ko: ")


def test_a_crash_in_a_module_that_lies_is_the_verdict_without_a_line_and_why_is_told(
    go: Go, events: list[Event]
) -> None:
    image = bytearray(KO_WITH_LINES)
    line_range_zero(image)
    said = tuple(line.replace("hello_init+0x5/0x10 [hello]", "outer+0x24/0x40 [frames]") for line in OOPS)
    result = go(images={"frames.ko": bytes(image)}, load=Act(kernel=said, code=None, ends="never"))
    assert result.outcome == "oops"
    assert [(c.function, c.file, c.line) for c in result.crashes] == [("outer", None, None)]
    assert any("no lines: frames.ko: has debug information that cannot be read" in note for note in notes(events))
