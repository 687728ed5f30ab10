"""Test the errors of a file system that the host's tools cannot read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmlab.common.errors import ImageError
from kmlab.common.events import Deadline
from kmlab.host.disk import rootfs


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        (
            "disk.raw: Filesystem has unsupported feature(s) while trying to open disk.raw\nls: Filesystem not open",
            "this host's e2fsprogs is too old for the image's file system: disk.raw: Filesystem has unsupported",
            "e2fsprogs 1.47",
        ),
        (
            "debugfs: Filesystem has unsupported feature(s) (FEATURE_C12) while opening\nls: Filesystem not open",
            "FEATURE_C12",
            "build: guest",
        ),
        (
            "disk.raw: Bad magic number in super-block\nls: Filesystem not open",
            "not a file system that debugfs can read: ls: Filesystem not open",
            None,
        ),
    ],
)
def test_a_file_system_that_is_too_new_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, message: str, hint: str | None
) -> None:
    """Ubuntu 26.04 has the feature orphan_file, which e2fsprogs 1.46 of Ubuntu 22.04 calls FEATURE_C12."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "debugfs").write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    (programs / "debugfs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(ImageError) as error:
        rootfs.Filesystem(tmp_path, "disk.raw?offset=1048576", Deadline(10)).entries("/")
    assert message in error.value.message
    assert (error.value.hint is None) if hint is None else (hint in (error.value.hint or ""))
