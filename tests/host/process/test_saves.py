"""Test the file watcher on a real folder with inotify."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmlab.host.process.file_watch import FileWatcher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "hello"
    (made / "deep").mkdir(parents=True)
    (made / "hello.c").write_text("one\n")
    (tmp_path / "lab.yaml").write_text("name: t\n")
    return made


@pytest.fixture
def saves(folder: Path) -> Iterator[FileWatcher]:
    """A watch that has begun."""
    with FileWatcher(poll_seconds=0.1) as made:
        made.point(folder, folder.parent / "lab.yaml")
        made.wait()
        quiet(made)
        yield made


def quiet(saves: FileWatcher) -> None:
    """Hear all that was told until there is nothing any more."""
    while saves.news:
        saves.forget()
        time.sleep(0.3)


def tells(saves: FileWatcher, save: Callable[[], object]) -> None:
    """A save is reported. The wait has an end, because it would otherwise last for ever."""
    quiet(saves)
    save()
    end = time.monotonic() + 30
    while not saves.news:
        assert time.monotonic() < end, "nothing was told"
        time.sleep(0.01)


def test_a_write_a_rename_a_deletion_and_a_file_deep_below_are_reported(saves: FileWatcher, folder: Path) -> None:
    tells(saves, lambda: (folder / "hello.c").write_text("two\n"))
    (folder.parent / "new.c").write_text("three\n")
    tells(saves, lambda: (folder.parent / "new.c").replace(folder / "hello.c"))
    tells(saves, lambda: (folder / "deep" / "x.h").write_text("\n"))
    tells(saves, (folder / "deep" / "x.h").unlink)


def test_a_new_folder_is_watched_as_well(saves: FileWatcher, folder: Path) -> None:
    tells(saves, (folder / "new").mkdir)
    tells(saves, lambda: (folder / "new" / "x.c").write_text("\n"))


def test_only_the_one_file_outside_the_folder_is_reported(saves: FileWatcher, folder: Path) -> None:
    (folder.parent / "other.yaml").write_text("x\n")
    (folder.parent / "other").mkdir()
    time.sleep(0.3)
    assert not saves.news
    tells(saves, lambda: (folder.parent / "lab.yaml").write_text("name: other\n"))


def test_a_folder_that_was_moved_and_recreated_is_watched_again(saves: FileWatcher, folder: Path) -> None:
    aside = folder.parent / "aside"
    tells(saves, lambda: folder.rename(aside))
    tells(saves, lambda: shutil.copytree(aside, folder))
    tells(saves, lambda: (folder / "hello.c").write_text("two\n"))
    tells(saves, lambda: shutil.rmtree(folder))
    tells(saves, lambda: aside.rename(folder))
    tells(saves, lambda: (folder / "hello.c").write_text("three\n"))


def test_another_folder_can_be_watched_instead(saves: FileWatcher, folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    saves.point(other, folder.parent / "lab.yaml")
    saves.wait()
    tells(saves, lambda: (other / "x.c").write_text("\n"))
    quiet(saves)
    (folder / "hello.c").write_text("two\n")
    time.sleep(0.3)
    assert not saves.news
