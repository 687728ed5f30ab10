"""A folder on the host that untrusted code writes in: no symbolic link in it is ever followed (openat(2), O_NOFOLLOW).

A module's Makefile may leave a link to the person's home where a folder of the sources was; the next sync must
replace it, not write through it. Nothing of the sandbox's runs any more while this code does.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kmlab.common import folder_tree

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UntrustedFolder:
    """An open folder. Paths are relative to it and come from a walk of our own: never absolute, without `..`."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
        self._root = os.open(root, _FOLDER)

    def __enter__(self) -> UntrustedFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def put_file(self, path: str, content: bytes, mode: int, mtime_ns: int) -> None:
        """A file with its mode and time; a new one, so that what else bears the old one's name keeps its bytes.

        A read-only one is made writable: make may have to write what an earlier build left.
        """
        with self._parent(path) as (parent, name):
            folder_tree.remove(parent, name)
            handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(handle, mode & 0o777 | 0o600)
                os.utime(handle, ns=(mtime_ns, mtime_ns))

    def put_folder(self, path: str, mode: int) -> None:
        """A folder; what lies in it stays."""
        with self._parent(path) as (parent, name):
            handle = _enter(parent, name)
            os.fchmod(handle, mode & 0o777 | 0o700)
            os.close(handle)

    def put_link(self, path: str, target: str) -> None:
        with self._parent(path) as (parent, name):
            folder_tree.remove(parent, name)
            os.symlink(target, name, dir_fd=parent)

    def remove(self, path: str) -> None:
        """Whatever is there; gone already is well."""
        with self._parent(path) as (parent, name):
            folder_tree.remove(parent, name)

    def read(self, path: str, most: int) -> bytes | None:
        """A regular file's first `most` bytes; None if it is anything else."""
        with contextlib.suppress(OSError), self._parent(path) as (parent, name):
            return folder_tree.read_file(parent, name, most)
        return None

    def files(self) -> Iterator[tuple[str, os.stat_result]]:
        """All regular files with their paths, sorted within a folder; links and what they lead to are passed over.

        So are folders that cannot be read, and files whose path is too long for any program to open.
        """
        for found in folder_tree.walk(self._root, unreadable=lambda *_: None):
            if found.path is not None and stat.S_ISREG(found.status.st_mode):
                yield found.path, found.status

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The open folder that `path` lies in, made where it is missing or something else, and the last name."""
        *folders, name = path.split("/")
        at = os.dup(self._root)
        try:
            for folder in folders:
                at, above = _enter(at, folder), at
                os.close(above)
            yield at, name
        finally:
            os.close(at)


def _enter(parent: int, name: str) -> int:
    """Open the folder of that name; one is made where there is none, or something else."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return folder_tree.open_folder(parent, name)
        os.unlink(name, dir_fd=parent)
    os.mkdir(name, 0o755, dir_fd=parent)
    return os.open(name, _FOLDER, dir_fd=parent)
