"""Test folder trees deeper than Python's stack and PATH_MAX, without permissions, with names of any bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmlab.common import folder_tree, paths
from kmlab.common.errors import ConfigError, LabError
from kmlab.diagnosis import console
from kmlab.host.disk import disks
from kmlab.host.process import sandbox
from kmlab.host.process.untrusted_folder import UntrustedFolder
from kmlab.run.build import source_folder
from kmlab.run.build.delivery import mirror
from kmlab.run.build.make import check_folder
from kmlab.run.build.source_folder import read_folder
from kmlab.run.selection import modules_under
from tests.labs import SHORT, lab_of

DEPTH = 1200
LONG = "a-name-that-is-long-enough"
"""So many of it are 32 kB: eight times PATH_MAX."""


def dig(top: Path, depth: int = DEPTH, name: str = LONG, mode: int = 0o755) -> None:
    """Folders in one another, a file in each hundredth and in the last one."""
    at = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(depth):
        os.mkdir(name, dir_fd=at)
        if number % 100 == 0 or number == depth - 1:
            os.close(os.open("file.ko", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        at, above = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at), at
        os.fchmod(above, mode)
        os.close(above)
    os.close(at)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "deep"
    folder.mkdir()
    dig(folder)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)  # pytest itself cannot remove it


def test_a_tree_deeper_than_the_stack_and_the_longest_path_is_removed(deep: Path) -> None:
    paths.remove_tree(deep)
    assert not deep.exists()
    paths.remove_tree(deep)


def test_every_file_of_a_deep_tree_is_visited_and_the_paths_end_at_path_max(deep: Path) -> None:
    with folder_tree.opened(deep) as top:
        entries = list(folder_tree.walk(top))
    assert sum(stat.S_ISDIR(f.status.st_mode) for f in entries) == DEPTH
    assert sum(f.name == "file.ko" for f in entries) == DEPTH // 100 + 1
    places = [f.path for f in entries if f.path is not None]
    assert places and max(map(len, places)) < folder_tree.PATH_MAX


def test_a_folder_with_a_deep_tree_of_a_build_is_listed_cleared_and_given_away(deep: Path, tmp_path: Path) -> None:
    with UntrustedFolder(tmp_path / "deep") as folder:
        assert [path for path, _ in folder.files()] == [f"{LONG}/" * 100 + "file.ko", "file.ko"]
        folder.remove(LONG)
    assert list(deep.iterdir()) == [deep / "file.ko"]


def test_root_s_sandbox_can_write_to_a_deep_folder(deep: Path) -> None:
    if os.geteuid() == 0:
        sandbox._make_writable(deep)
        with folder_tree.opened(deep) as top:
            assert {f.status.st_uid for f in folder_tree.walk(top)} == {sandbox._SANDBOX_UID}


def test_a_deep_run_s_folder_is_removed_with_the_oldest(deep: Path, tmp_path: Path) -> None:
    (tmp_path / "z-newer").mkdir()
    console.keep_latest(tmp_path, 1, 1 << 30)
    assert not deep.exists()


def test_the_size_of_a_deep_tree_is_measured(deep: Path) -> None:
    assert disks.size_on_disk(deep) == 0
    assert folder_tree.size_of(deep) == 0


def test_a_module_s_folder_that_is_too_deep_is_one_clear_line(deep: Path) -> None:
    (deep / "Kbuild").write_text("obj-m := a.o\n")
    with pytest.raises(ConfigError, match="folders in folders, more than 256 deep"):
        read_folder(deep)


@pytest.mark.parametrize("depth", [300, 2500])
def test_short_names_can_be_too_deep_as_well(tmp_path: Path, depth: int) -> None:
    dig(tmp_path, depth, "d")
    with pytest.raises(ConfigError, match="folders in folders"):
        read_folder(tmp_path)
    paths.remove_tree(tmp_path / "d")


def test_folders_without_permissions_are_removed_even_without_root(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/b/c/file").touch()
    for folder in ("a/b/c", "a/b", "a"):
        (top / folder).chmod(0)
    # Root may enter any folder, so it becomes somebody else for a moment.
    with as_nobody(tmp_path):
        paths.remove_tree(top)
    assert not top.exists()


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Be a user without rights to whom that folder belongs."""
    if os.geteuid():
        yield
        return
    for above in folder.parents[:2]:
        above.chmod(0o755)
    sandbox._make_writable(folder)
    os.seteuid(sandbox._SANDBOX_UID)
    try:
        yield
    finally:
        os.seteuid(0)


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (tmp_path / "top").mkdir()
    (tmp_path / "top/out").symlink_to(precious)
    (tmp_path / "top/up").symlink_to("..")
    with folder_tree.opened(tmp_path / "top") as top:
        assert [f.path for f in folder_tree.walk(top)] == ["out", "up"]
    paths.remove_tree(tmp_path / "top")
    assert (precious / "file").exists()
    (tmp_path / "named").symlink_to(precious)
    paths.remove_tree(tmp_path / "named")
    assert (precious / "file").exists() and not (tmp_path / "named").is_symlink()


def test_names_of_any_bytes_are_walked_and_removed(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path / "top")
    os.makedirs(top + b"/m\xff\n\x1b[31m/\xe2\x80\xae")
    with folder_tree.opened(top) as handle:
        names = [os.fsencode(f.path or "") for f in folder_tree.walk(handle)]
    assert names == [b"m\xff\n\x1b[31m", b"m\xff\n\x1b[31m/\xe2\x80\xae"]
    paths.remove_tree(tmp_path / "top")
    assert not (tmp_path / "top").exists()


def test_what_cannot_be_removed_is_a_lab_error_with_a_visible_name(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"cannot remove this folder"):
        paths.remove_tree(Path("/proc/self"))


def test_a_folder_that_is_moved_during_the_walk_ends_it(tmp_path: Path) -> None:
    (tmp_path / "top/a/b").mkdir(parents=True)
    (tmp_path / "top/z").mkdir()
    with folder_tree.opened(tmp_path / "top") as top, pytest.raises(OSError, match="moved"):
        for entry in folder_tree.walk(top):
            if entry.name == "b":
                shutil.move(tmp_path / "top/a", tmp_path / "elsewhere")


def test_folders_of_modules_are_looked_for_in_a_deep_tree(deep: Path, tmp_path: Path) -> None:
    lab = lab_of(tmp_path, SHORT)
    with pytest.raises(ConfigError, match="no modules under this folder"):
        modules_under(lab, [deep])


# --- folders that are no module's ----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["/proc", "/proc/self", "/sys", "/sys/kernel", "/dev/pts"])
def test_a_kernel_file_system_is_no_module_s_folder(folder: str) -> None:
    with pytest.raises(ConfigError, match=f"^{folder}: holds no source files"):
        check_folder(Path(folder))


@pytest.mark.parametrize("folder", ["/dev", "/", "/proc/self/fd/0", "/proc/self/maps", "/proc/1/root/proc", "a" * 300])
def test_other_places_are_one_clear_line(folder: str) -> None:
    with pytest.raises(ConfigError):
        check_folder(Path(folder))


def test_a_folder_with_too_many_files_is_no_module_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_folder, "_MOST_SOURCES", 20)
    for number in range(30):
        (tmp_path / str(number)).touch()
    with pytest.raises(ConfigError, match="holds more than 20 files"):
        read_folder(tmp_path)


def test_pipes_sockets_and_devices_next_to_the_sources_are_skipped(tmp_path: Path) -> None:
    for name in ("Kbuild", "sub/Makefile"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    (tmp_path / "Makefile").write_text("obj-m := a.o\n")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
    (tmp_path / "null").symlink_to("/dev/zero")
    if os.geteuid() == 0:
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    check_folder(tmp_path)
    assert {path: entry.kind for path, entry in read_folder(tmp_path).items()} == {
        "Makefile": "file",
        "null": "link",
        "sub": "folder",
    }


def test_a_makefile_that_is_a_pipe_or_a_device_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "Makefile")
    (tmp_path / "Kbuild").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="no Kbuild file, and no Makefile"):
        check_folder(tmp_path)


@pytest.mark.parametrize("name", ["Makefile", "a.c", "sub"])
def test_an_unreadable_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.c").touch()
    (tmp_path / "Makefile").write_text("obj-m := a.o\n")
    (tmp_path / name).chmod(0)
    with as_nobody(tmp_path), pytest.raises(ConfigError, match=f"/{name}: Permission denied"):
        check_folder(tmp_path)
        mirror(tmp_path, tmp_path / "target")
    (tmp_path / name).chmod(0o755)


def test_an_unreadable_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    with as_nobody(tmp_path), pytest.raises(ConfigError, match="Permission denied"):
        check_folder(tmp_path)
    tmp_path.chmod(0o755)


def test_a_file_that_becomes_a_pipe_while_it_is_sent_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "a.c").touch()
    read_folder(tmp_path)
    (tmp_path / "a.c").unlink()
    os.mkfifo(tmp_path / "a.c")
    with pytest.raises(ConfigError, match=r"a\.c: is no regular file of a disk"):
        source_folder.read_source(tmp_path, "a.c")
