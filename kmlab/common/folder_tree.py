"""Walk, measure and remove folder trees of any depth and with any names.

Nothing here recurses, follows a symbolic link, or passes the kernel a path from the top: a tree may be deeper than
Python's stack, and its paths longer than PATH_MAX (path_resolution(7)). Only one folder is open at a time. The way back
is `..`, so that the depth costs no file descriptors. No folder of the tree may be renamed during a walk: if `..` leads
to another folder than the walk came from, the walk ends in an error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import NamedTuple

PATH_MAX = 4096
"""Bytes of a path that any program can open at once (include/uapi/linux/limits.h)."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TreeEntry(NamedTuple):
    """One file, folder or other entry of a tree."""

    path: str | None
    """Relative to the top; None if that is longer than PATH_MAX."""
    name: str
    status: os.stat_result
    parent: int
    """The folder that contains it, open until the walk continues."""
    siblings: frozenset[str]
    """All names in that folder, including its own."""


Descend = Callable[[TreeEntry], bool]
Unreadable = Callable[[TreeEntry, OSError], None]


def _enter_all(entry: TreeEntry) -> bool:
    return True


def _raise(entry: TreeEntry, error: OSError) -> None:
    raise error


def walk(top: int, descend: Descend = _enter_all, unreadable: Unreadable = _raise) -> Iterator[TreeEntry]:
    """Yield every entry below the open folder `top`, sorted, each folder before its content.

    Entries that vanish during the walk are skipped. `descend` decides for each folder, after it was yielded, whether to
    enter it. `unreadable` is called for a folder that cannot be opened.
    """
    with _Position(top) as position:
        siblings = [frozenset(os.listdir(position.handle))]
        pending = [sorted(siblings[0], reverse=True)]
        paths: list[str | None] = [""]
        while pending:
            if not pending[-1]:
                for level in (pending, paths, siblings):
                    level.pop()
                if pending:
                    position.leave()
                continue
            name = pending[-1].pop()
            try:
                status = os.stat(name, dir_fd=position.handle, follow_symlinks=False)
            except OSError:
                continue
            entry = TreeEntry(_joined(paths[-1], name), name, status, position.handle, siblings[-1])
            yield entry
            if stat.S_ISDIR(status.st_mode) and descend(entry):
                try:
                    position.enter(name)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    unreadable(entry, error)
                    continue
                siblings.append(frozenset(os.listdir(position.handle)))
                pending.append(sorted(siblings[-1], reverse=True))
                paths.append(entry.path)


def _joined(parent: str | None, name: str) -> str | None:
    if parent is None:
        return None
    path = f"{parent}/{name}" if parent else name
    return path if len(os.fsencode(path)) < PATH_MAX else None


def remove(parent: int, name: str) -> None:
    """Remove the entry `name` of the open folder `parent`, if it exists, with all that is in it.

    Folders without permissions get them first. Raise OSError if something cannot be removed.
    """
    if _unlinked(parent, name):
        return
    with _Position(parent) as position:
        position.enter(name, force=True)
        names, pending = [name], [_folders_left(position.handle)]
        while names:
            if pending[-1]:
                names.append(pending[-1].pop())
                position.enter(names[-1], force=True)
                pending.append(_folders_left(position.handle))
            else:
                pending.pop()
                position.leave()
                os.rmdir(names.pop(), dir_fd=position.handle)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, if it exists."""
    try:
        parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove(parent, folder.name)
    finally:
        os.close(parent)


def size_of(folder: Path) -> int:
    """Return the bytes of all regular files below a folder."""
    with opened(folder) as top:
        return sum(f.status.st_size for f in walk(top, unreadable=lambda *_: None) if stat.S_ISREG(f.status.st_mode))


class opened:
    """`with opened(folder) as handle:` opens a folder. The path itself may be a symbolic link."""

    def __init__(self, folder: Path | bytes | str) -> None:
        self._folder = folder

    def __enter__(self) -> int:
        self._handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._handle

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)


def read_file(
    parent: int, name: str, most: int, *, follow: bool = False, refuse: Container[int] = frozenset()
) -> bytes | None:
    """Return the first `most` bytes of a regular file, or None for anything else. Never block.

    `follow` follows symbolic links: for a path that the user gave. A file of one of the devices `refuse` is not read.
    """
    # Without O_NONBLOCK, opening a pipe that has no writer blocks forever.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    handle = os.open(name, flags, dir_fd=parent)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_dev in refuse:
            return None
        return file.read(most) or b""  # None if the kernel has nothing to say yet, as in /proc/kmsg


def open_folder(parent: int, name: str) -> int:
    """Open a folder of a tree that we own. Give its owner read and write permission first if needed."""
    try:
        handle = os.open(name, _FOLDER, dir_fd=parent)
        if os.fstat(handle).st_mode & stat.S_IRWXU == stat.S_IRWXU:
            return handle
        os.close(handle)
    except PermissionError:
        pass
    # chmod(2) by name would follow a link, and a folder without permissions can only be opened with O_PATH.
    path_handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{path_handle}", 0o755)
        return os.open(name, _FOLDER, dir_fd=parent)
    finally:
        os.close(path_handle)


class _Position:
    """The position of a walk: one open folder, and the identities of the folders above it."""

    def __init__(self, top: int) -> None:
        self.handle = os.dup(top)
        self._above: list[tuple[int, int]] = []

    def __enter__(self) -> _Position:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)

    def enter(self, name: str, *, force: bool = False) -> None:
        """Enter a folder. `force` gives it the needed permissions first."""
        deeper = open_folder(self.handle, name) if force else os.open(name, _FOLDER, dir_fd=self.handle)
        self._above.append(_identity(self.handle))
        self._switch_to(deeper)

    def leave(self) -> None:
        """Go back to the folder above."""
        above = os.open("..", _FOLDER, dir_fd=self.handle)
        if _identity(above) != self._above.pop():
            os.close(above)
            raise OSError("a folder was moved during the walk")
        self._switch_to(above)

    def _switch_to(self, handle: int) -> None:
        os.close(self.handle)
        self.handle = handle


def _identity(handle: int) -> tuple[int, int]:
    status = os.fstat(handle)
    return status.st_dev, status.st_ino


def _folders_left(handle: int) -> list[str]:
    """Unlink everything in an open folder except folders, and return the names of those."""
    return [name for name in os.listdir(handle) if not _unlinked(handle, name)]


def _unlinked(parent: int, name: str) -> bool:
    """Unlink an entry that is not a folder. Return False for a folder, which stays."""
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return False
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    return True
