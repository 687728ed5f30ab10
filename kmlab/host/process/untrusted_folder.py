"""Read and write a host folder that untrusted code writes to, without following symbolic links (openat(2), O_NOFOLLOW).

A module's Makefile may replace a source folder by a link to the user's home. The next sync must replace the link, not
write through it. No program of the sandbox runs while this code runs.
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
    """An open folder. Paths are relative to it and come from our own walk: never absolute, without `..`."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
        self._root = os.open(root, _FOLDER)

    def __enter__(self) -> UntrustedFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def put_file(self, path: str, content: bytes, mode: int, mtime_ns: int) -> None:
        """Create a file with its mode and time. An existing one is replaced, so that its hard links keep their content.

        A read-only file becomes writable, because make may have to overwrite the files of an earlier build.
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
        """Create a folder, or set the mode of an existing one. Its content stays."""
        with self._parent(path) as (parent, name):
            handle = _enter(parent, name)
            os.fchmod(handle, mode & 0o777 | 0o700)
            os.close(handle)

    def put_link(self, path: str, target: str) -> None:
        with self._parent(path) as (parent, name):
            folder_tree.remove(parent, name)
            os.symlink(target, name, dir_fd=parent)

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with its content, if it exists."""
        with self._parent(path) as (parent, name):
            folder_tree.remove(parent, name)

    def read(self, path: str, most: int) -> bytes | None:
        """Return a regular file's first `most` bytes; None if it is anything else or missing."""
        with contextlib.suppress(OSError), self._parent(path) as (parent, name):
            return folder_tree.read_file(parent, name, most)
        return None

    def files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the path and status of each regular file, sorted within a folder. Skip links and their targets.

        Also skip folders that cannot be read, and files whose path is too long to open.
        """
        for entry in folder_tree.walk(self._root, unreadable=lambda *_: None):
            if entry.path is not None and stat.S_ISREG(entry.status.st_mode):
                yield entry.path, entry.status

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield the open parent folder of `path` and the last name. Create missing folders, replace files by them."""
        *folders, name = path.split("/")
        handle = os.dup(self._root)
        try:
            for folder in folders:
                handle, above = _enter(handle, folder), handle
                os.close(above)
            yield handle, name
        finally:
            os.close(handle)


def _enter(parent: int, name: str) -> int:
    """Open the folder of that name. Create it if it is missing, or if a file has that name."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return folder_tree.open_folder(parent, name)
        os.unlink(name, dir_fd=parent)
    os.mkdir(name, 0o755, dir_fd=parent)
    return os.open(name, _FOLDER, dir_fd=parent)
