"""Test the paths of the state and the cache, and that files there are written atomically."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from kmlab.common import paths
from kmlab.common.errors import LabError

pytestmark = pytest.mark.usefixtures("xdg")


def test_state_and_cache_follow_xdg(xdg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.state_home() == xdg / "state" / "kmlab"
    assert paths.cache_home() == xdg / "cache" / "kmlab"
    monkeypatch.setenv("HOME", str(xdg))
    monkeypatch.delenv("XDG_STATE_HOME")
    assert paths.state_home() == xdg / ".local" / "state" / "kmlab"


def test_a_relative_xdg_folder_is_ignored(xdg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(xdg))
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert paths.cache_home() == xdg / ".cache" / "kmlab"


def test_labs_with_the_same_name_have_different_folders(xdg: Path) -> None:
    (xdg / "one").mkdir()
    one = paths.LabFiles.of("lab", xdg / "one" / "lab.yaml")
    two = paths.LabFiles.of("lab", xdg / "two" / "lab.yaml")
    assert one.root != two.root
    assert one.root == paths.LabFiles.of("lab", xdg / "two" / ".." / "one" / "lab.yaml").root
    assert one.runs == xdg / "one" / ".kmlab" / "runs"
    assert paths.state_home() in one.keys.parents


def test_a_lock_is_next_to_what_it_guards(xdg: Path) -> None:
    guest = paths.LabFiles.of("lab", xdg / "lab.yaml").guest("debian")
    assert guest.lock.parent == guest.root.parent


def test_a_file_is_written_atomically(xdg: Path) -> None:
    place = xdg / "new" / "file.json"
    paths.write_text(place, "one", 0o600)
    assert place.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OverflowError):
        paths.write_text(place, "two", 1 << 40)
    assert place.read_text() == "one"
    assert [path.name for path in place.parent.iterdir()] == ["file.json"]


def test_a_truncated_record_is_ignored(xdg: Path) -> None:
    place = xdg / "record.json"
    paths.write_json(place, {"name": "Grüße"})
    assert paths.read_json(place) == {"name": "Grüße"}
    place.write_bytes(place.read_bytes()[:-4])
    assert paths.read_json(place) is None
    place.write_bytes(b"\xff\xfe")
    assert paths.read_json(place) is None
    assert paths.read_json(xdg / "absent.json") is None


def test_a_file_in_the_place_of_a_folder_is_one_clear_error(xdg: Path) -> None:
    (xdg / "state").write_text("")
    with pytest.raises(LabError, match="cannot make this folder: Not a directory") as caught:
        paths.make_folder(paths.state_home())
    assert caught.value.hint is not None and "XDG_STATE_HOME" in caught.value.hint


def test_read_only_things_are_removed_too(xdg: Path) -> None:
    folder = xdg / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_text("x")
    (folder / "sub" / "file").chmod(0o444)
    (folder / "sub").chmod(0o555)
    paths.remove_tree(folder)
    paths.remove_tree(folder)
    assert not folder.exists()


def test_removing_a_folder_leaves_what_its_links_point_to(xdg: Path) -> None:
    (xdg / "kept").mkdir()
    (xdg / "kept" / "file").write_text("x")
    (xdg / "gone").mkdir()
    (xdg / "gone" / "link").symlink_to(xdg / "kept")
    paths.remove_tree(xdg / "gone")
    assert (xdg / "kept" / "file").exists()


def test_a_digest_changes_with_any_part() -> None:
    name = paths.digest_of(1, "a", {"x": 1, "y": 2})
    assert len(name) == 16
    assert name == paths.digest_of(1, "a", {"y": 2, "x": 1})
    assert name != paths.digest_of(1, "a", {"x": 1, "y": 3})
    assert paths.digest_of("ab", "c") != paths.digest_of("a", "bc")


def test_an_atomic_folder_is_removed_after_a_failure(xdg: Path) -> None:
    final, scratch = xdg / "final", xdg / "work"
    with pytest.raises(KeyboardInterrupt), paths.atomic_folder(final, scratch) as folder:
        (folder / "part").write_text("x")
        raise KeyboardInterrupt
    assert not final.exists()
    assert list(scratch.iterdir()) == []


def test_an_atomic_folder_replaces_the_old_one_after_a_success(xdg: Path) -> None:
    final, scratch = xdg / "final", xdg / "work"
    for text in ("old", "new"):
        with paths.atomic_folder(final, scratch) as folder:
            (folder / "whole").write_text(text)
    assert (final / "whole").read_text() == "new"
    assert list(scratch.iterdir()) == []


def test_incomplete_artifacts_have_the_prefix_that_the_sweep_looks_for(xdg: Path) -> None:
    with paths.atomic_folder(xdg / "0123456789abcdef", xdg / "work") as folder:
        assert folder.name.startswith("0123456789abcdef.")


def test_json_keeps_every_character(xdg: Path) -> None:
    paths.write_json(xdg / "a.json", ["\x00\u202e\U0001f600"])
    assert json.loads((xdg / "a.json").read_bytes()) == ["\x00\u202e\U0001f600"]


def test_a_socket_s_path_is_measured_in_bytes(xdg: Path) -> None:
    fitting = paths.SOCKET_PATH_LIMIT - len("/lib/domain-99-kmlab/monitor.sock")
    paths.check_socket_path(Path("/" + "a" * (fitting - 1)))
    with pytest.raises(LabError, match="too long for a socket"):
        paths.check_socket_path(Path("/" + "a" * fitting))
    with pytest.raises(LabError, match="too long for a socket"):
        paths.check_socket_path(Path("/" + "ä" * (fitting // 2 + 1)))
    assert len(os.fsencode("ä")) == 2


class Space(NamedTuple):
    total: int
    used: int
    free: int


def test_a_failed_write_on_a_full_disk_names_the_disk_and_the_variable(
    xdg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(9 << 30, 0, 0 if "state" in str(path) else 8 << 30))
    paths.make_folder(paths.state_home())
    said = paths.disk_full_error(full)
    assert said is not None and said.message == f"{paths.state_home()}: No space left on device"
    assert said.hint is not None and "XDG_STATE_HOME" in said.hint
    named = paths.disk_full_error(OSError(errno.ENOSPC, "No space left on device", str(paths.cache_home() / "x")))
    assert named is not None and named.message == f"{paths.cache_home()}/x: No space left on device"
    assert named.hint is not None and "XDG_CACHE_HOME" in named.hint
    assert paths.disk_full_error(OSError(errno.EACCES, "Permission denied")) is None
