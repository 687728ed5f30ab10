"""Test the error for an image that could not be built: the first cause, and the remedy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from kmlab.common.errors import ImageError
from kmlab.common.events import Deadline
from kmlab.host.packages import mmdebstrap
from kmlab.host.packages.package_archive import PackageImage
from kmlab.host.process import command

HOOK = "mke2fs -d somewhere"


class Space(NamedTuple):
    total: int
    used: int
    free: int


def failed(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> ImageError:
    """What comes of a stand-in for mmdebstrap that says this and fails; `HOOK` stands for its own words of the hook."""
    programs = folder / "bin"
    programs.mkdir()
    lines = "".join(f"say '{line}'\n" for line in words)
    say = 'say() { case $1 in *HOOK*) echo "${1%%HOOK*}$hook${1#*HOOK}" ;; *) echo "$1" ;; esac; }\n'
    find = 'for word in "$@"; do case $word in --customize-hook=*) hook=${word#*=} ;; esac; done\n'
    (programs / "mmdebstrap").write_text(f"#!/bin/sh\n{find}{say}{lines}exit 25\n")
    (programs / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    about = PackageImage(
        distribution="debian", suite="bookworm", arch="x86_64", packages=["make"], root_size=1 << 20, hook=HOOK
    )
    with pytest.raises(ImageError) as error:
        mmdebstrap.unpack(about, folder / "root.img", Deadline(30), lambda line: None)
    return error.value


FULL = (
    "I: running --customize-hook in shell: sh -c HOOK exec /tmp/mmdebstrap.x",
    '__populate_fs: No space left on device while writing file "vmlinuz-6.1.0-56-cloud-amd64"',
    "mke2fs: No space left on device while populating file system",
    "E: setup failed: E: command failed: HOOK",
    "W: hooklistener errored out: E: received eof on socket",
)


def test_a_full_disk_is_reported_and_not_the_script_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(100 << 30, 100 << 30, 0))
    error = failed(tmp_path, monkeypatch, *FULL)
    assert error.message.startswith("could not build bookworm for x86_64: __populate_fs: No space left on device")
    assert error.hint is not None and "XDG_CACHE_HOME" in error.hint


def test_if_the_image_had_space_the_temporary_folder_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "dpkg: error processing archive gcc.deb (--unpack): cannot copy: failed to write (No space left on device)"
    error = failed(tmp_path, monkeypatch, said, "E: run_progress failed")
    assert error.message.endswith("failed to write (No space left on device)")
    assert error.hint is not None and "TMPDIR" in error.hint


def test_a_failed_script_is_reported_with_its_own_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = failed(tmp_path, monkeypatch, FULL[0], "sh: 3: mke2fs: not found", FULL[3], "I: removing tempdir")
    assert error.message == "could not build bookworm for x86_64: sh: 3: mke2fs: not found"


def test_apt_s_first_error_is_the_cause_and_has_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = failed(tmp_path, monkeypatch, "E: Unable to locate package make", "E: apt-get install failed")
    assert error.message == "could not build bookworm for x86_64: Unable to locate package make"
    assert error.hint is not None and "images/" in error.hint


def build_with(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Build with a stand-in for mmdebstrap."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "mmdebstrap").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    about = PackageImage(
        distribution="debian", suite="bookworm", arch="x86_64", packages=["make"], root_size=1 << 20, hook=HOOK
    )
    (folder / "work").mkdir()
    mmdebstrap.unpack(about, folder / "work" / "root.img", Deadline(30), lambda line: None)


def test_temporary_files_of_the_builder_are_in_a_folder_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_with(tmp_path, monkeypatch, f'mkdir -p "$TMPDIR/chroot/x"; echo "$TMPDIR" > {tmp_path}/said')
    folder = Path((tmp_path / "said").read_text().strip())
    assert folder.name.startswith("kmlab-builder-")
    assert not folder.exists()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["root.img"]


def test_what_a_killed_kmlab_left_of_a_build_is_swept(tmp_path: Path) -> None:
    left, work = tmp_path / "kmlab-builder-x", tmp_path / "work"
    (left / "chroot").mkdir(parents=True)
    work.mkdir()
    (work / "builder").write_text(str(left))
    mmdebstrap.sweep(work)
    assert not left.exists()


def test_the_sweep_removes_nothing_but_a_builder_s_folder(tmp_path: Path) -> None:
    other, work = tmp_path / "other", tmp_path / "work"
    other.mkdir()
    work.mkdir()
    link = tmp_path / "kmlab-builder-link"
    link.symlink_to(other)
    for name in (other, link, tmp_path / "absent"):
        (work / "builder").write_text(str(name))
        mmdebstrap.sweep(work)
    (work / "builder").unlink()
    mmdebstrap.sweep(work)
    assert other.exists()


def test_an_unknown_key_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = failed(
        tmp_path,
        monkeypatch,
        "W: GPG error: http://archive.example/debian bookworm InRelease: the public key is not available: "
        "NO_PUBKEY 6ED0E7B82643E131 NO_PUBKEY F8D2585B8783D481",
        "E: The repository http://archive.example/debian bookworm InRelease is not signed.",
    )
    assert error.message.endswith("bookworm InRelease is not signed.")
    assert error.hint is not None
    assert "this host does not have the key 6ED0E7B82643E131" in error.hint and "archive_keys" in error.hint


def test_the_image_s_keys_are_trusted_besides_those_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, keyrings, own = tmp_path / "trusted.gpg.d", tmp_path / "keyrings", tmp_path / "private"
    for folder in (host, keyrings, own):
        folder.mkdir(mode=0o700)
    (host / "mirror.asc").write_text("the host's")
    (host / "ubuntu.list").write_text("no key")
    (keyrings / "debian-archive-keyring.gpg").write_text("the distribution's, old")
    (own / "debian-13.gpg").write_text("the image's")
    monkeypatch.setattr(mmdebstrap, "_HOST_KEYS", host)
    monkeypatch.setattr(mmdebstrap, "_KEYRINGS", keyrings)
    about = PackageImage(
        distribution="debian",
        suite="bookworm",
        arch="x86_64",
        packages=["make"],
        root_size=1 << 20,
        hook=HOOK,
        keyrings=[own / "debian-13.gpg"],
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    read = 'for word in "$@"; do case $word in --keyring=*) cd "${word#*=}"; stat -c %a . *; grep . *; esac; done'
    (programs / "mmdebstrap").write_text(f"#!/bin/sh\n{read}\n")
    (programs / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    lines: list[str] = []
    mmdebstrap.unpack(about, tmp_path / "root.img", Deadline(30), lambda line: lines.append(line.strip()))
    assert lines == [
        *("755", "644", "644", "644"),
        *("0.asc:the host's", "1.gpg:the distribution's, old", "2.gpg:the image's"),
    ]


@pytest.mark.parametrize(
    ("keys", "source"),
    [
        ([], "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://archive.example/debian sid main"),
        (["debian-archive-bookworm-automatic.asc"], "deb http://archive.example/debian sid main"),
    ],
)
def test_an_image_whose_apt_trusts_no_key_names_its_keyring(tmp_path: Path, keys: list[str], source: str) -> None:
    """Debian 13 has no keys in /etc/apt/trusted.gpg.d any more."""
    (tmp_path / "etc/apt/trusted.gpg.d").mkdir(parents=True)
    for key in keys:
        (tmp_path / "etc/apt/trusted.gpg.d" / key).touch()
    (tmp_path / "etc/apt/sources.list").write_text("deb http://archive.example/debian sid main\n")
    script = mmdebstrap._SIGNED_BY.format(distribution="debian")
    command.run(["sh", "-ec", script, "sh", tmp_path], deadline=Deadline(10))
    assert (tmp_path / "etc/apt/sources.list").read_text() == f"{source}\n"


def test_a_host_without_user_namespaces_is_not_told_to_add_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = failed(
        tmp_path,
        monkeypatch,
        "E: unshare syscall failed: Operation not permitted",
        "W: cannot find newuidmap",
        "E: unshared command failed",
    )
    assert error.message.endswith("unshare syscall failed: Operation not permitted")
    assert error.hint is not None and error.hint.startswith("this host forbids user namespaces")
