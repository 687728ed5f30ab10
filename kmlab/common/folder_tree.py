"""Walk, measure and remove folder trees that a build, a guest or a person made, however deep and however named.

Nothing here recurses, follows a symbolic link, or hands the kernel a path from the top: a tree may be deeper than
Python's stack, and its paths longer than PATH_MAX (path_resolution(7)). One folder is open at a time and the way back
is `..`, so that the depth costs no file descriptors either. Nobody may rename folders of the tree meanwhile; where `..`
leads elsewhere than the walk came from, the walk ends in an error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PATH_MAX = 4096
"""Bytes of a path that any program can still open in one piece (include/uapi/linux/limits.h)."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Found(NamedTuple):
    """One thing in a tree."""

    path: str | None
    """Relative to the top; None where that is longer than PATH_MAX."""
    name: str
    status: os.stat_result
    parent: int
    """The folder that it lies in, open until the walk goes on."""
    beside: frozenset[str]
    """All names in that folder."""


Descend = Callable[[Found], bool]
Unreadable = Callable[[Found, OSError], None]


def _always(found: Found) -> bool:
    return True


def _raise(found: Found, error: OSError) -> None:
    raise error


def walk(top: int, descend: Descend = _always, unreadable: Unreadable = _raise) -> Iterator[Found]:
    """All that is beneath the open folder `top`, sorted, each folder before what lies in it.

    What vanishes meanwhile is passed over. `descend` is asked of each folder, after it was yielded; `unreadable` is
    told of one that cannot be opened.
    """
    with _Place(top) as place:
        beside = [frozenset(os.listdir(place.handle))]
        waiting = [sorted(beside[0], reverse=True)]
        paths: list[str | None] = [""]
        while waiting:
            if not waiting[-1]:
                for level in (waiting, paths, beside):
                    level.pop()
                if waiting:
                    place.leave()
                continue
            name = waiting[-1].pop()
            try:
                status = os.stat(name, dir_fd=place.handle, follow_symlinks=False)
            except OSError:
                continue
            found = Found(_joined(paths[-1], name), name, status, place.handle, beside[-1])
            yield found
            if stat.S_ISDIR(status.st_mode) and descend(found):
                try:
                    place.enter(name)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    unreadable(found, error)
                    continue
                beside.append(frozenset(os.listdir(place.handle)))
                waiting.append(sorted(beside[-1], reverse=True))
                paths.append(found.path)


def _joined(parent: str | None, name: str) -> str | None:
    if parent is None:
        return None
    path = f"{parent}/{name}" if parent else name
    return path if len(os.fsencode(path)) < PATH_MAX else None


def remove(parent: int, name: str) -> None:
    """Remove whatever bears that name in the open folder `parent`; gone already is well.

    Folders without rights are given them first. Raises OSError for what cannot be removed.
    """
    if _unlinked(parent, name):
        return
    with _Place(parent) as place:
        place.enter(name, anyhow=True)
        names, waiting = [name], [_folders_left(place.handle)]
        while names:
            if waiting[-1]:
                names.append(waiting[-1].pop())
                place.enter(names[-1], anyhow=True)
                waiting.append(_folders_left(place.handle))
            else:
                waiting.pop()
                place.leave()
                os.rmdir(names.pop(), dir_fd=place.handle)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it; gone already is well."""
    try:
        parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove(parent, folder.name)
    finally:
        os.close(parent)


def size_of(folder: Path) -> int:
    """Bytes of all regular files beneath a folder."""
    with opened(folder) as top:
        return sum(f.status.st_size for f in walk(top, unreadable=lambda *_: None) if stat.S_ISREG(f.status.st_mode))


class opened:
    """`with opened(folder) as handle:` a folder, which may itself be named by a symbolic link."""

    def __init__(self, folder: Path | bytes | str) -> None:
        self._folder = folder

    def __enter__(self) -> int:
        self._handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._handle

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)


def read_file(parent: int, name: str, most: int, *, follow: bool = False) -> bytes | None:
    """The first `most` bytes of a regular file; None of anything else. Waits for nothing.

    `follow` is for a path that a person named: through symbolic links.
    """
    # Opening a pipe that nobody writes to would wait forever.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    handle = os.open(name, flags, dir_fd=parent)
    with os.fdopen(handle, "rb") as file:
        return file.read(most) if stat.S_ISREG(os.fstat(handle).st_mode) else None


def open_folder(parent: int, name: str) -> int:
    """Open a folder of a tree that is ours; one that its owner may not read and write is made so."""
    try:
        handle = os.open(name, _FOLDER, dir_fd=parent)
        if os.fstat(handle).st_mode & stat.S_IRWXU == stat.S_IRWXU:
            return handle
        os.close(handle)
    except PermissionError:
        pass
    # chmod(2) by name would follow a link, and a folder without rights cannot be opened but as a path.
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{place}", 0o755)
        return os.open(name, _FOLDER, dir_fd=parent)
    finally:
        os.close(place)


class _Place:
    """Where a walk is: one open folder, and what the folders above it are."""

    def __init__(self, top: int) -> None:
        self.handle = os.dup(top)
        self._above: list[tuple[int, int]] = []

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)

    def enter(self, name: str, *, anyhow: bool = False) -> None:
        """Go into a folder; `anyhow` gives it the rights for that."""
        deeper = open_folder(self.handle, name) if anyhow else os.open(name, _FOLDER, dir_fd=self.handle)
        self._above.append(_identity(self.handle))
        self._go(deeper)

    def leave(self) -> None:
        """Go back to the folder above."""
        above = os.open("..", _FOLDER, dir_fd=self.handle)
        if _identity(above) != self._above.pop():
            os.close(above)
            raise OSError("a folder was moved while it was looked through")
        self._go(above)

    def _go(self, handle: int) -> None:
        os.close(self.handle)
        self.handle = handle


def _identity(handle: int) -> tuple[int, int]:
    status = os.fstat(handle)
    return status.st_dev, status.st_ino


def _folders_left(handle: int) -> list[str]:
    """Unlink all in an open folder but the folders, and name those."""
    return [name for name in os.listdir(handle) if not _unlinked(handle, name)]


def _unlinked(parent: int, name: str) -> bool:
    """Whether nothing bears the name any more; False for a folder."""
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return False
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    return True
