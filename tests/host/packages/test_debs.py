"""Test that an uncompressed package is the same package for dpkg."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kmlab.common.events import Deadline
from kmlab.host.packages import debs


def told(deb: Path, option: str) -> bytes:
    return subprocess.run(["dpkg-deb", option, deb], capture_output=True, check=True, timeout=30).stdout


def compressed(folder: Path, how: str) -> Path:
    """A package with a program and a file of an odd size in it."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: odd\nVersion: 1:2~3\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr" / "tool").write_text("#!/bin/sh\n")
    (tree / "usr" / "tool").chmod(0o4755)
    (tree / "usr" / "zeros").write_bytes(bytes(100_001))
    deb = folder / "odd.deb"
    subprocess.run(["dpkg-deb", f"-Z{how}", "--build", tree, deb], check=True, capture_output=True, timeout=30)
    return deb


@pytest.mark.parametrize("how", ["xz", "zstd", "gzip", "none"])
def test_an_expanded_package_is_the_same_package(tmp_path: Path, how: str) -> None:
    deb = compressed(tmp_path, how)
    options = ("--fsys-tarfile", "--ctrl-tarfile", "--field", "--contents")
    before = [told(deb, option) for option in options]
    debs.expand(deb, Deadline(30))
    assert [told(deb, option) for option in options] == before
    assert bytes(100_001) in deb.read_bytes(), "what it holds lies there as it is"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.deb", "tree"]
