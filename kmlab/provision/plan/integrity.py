"""Remember that cached files were read and found intact, so that each is read once in a boot of the host.

What is compared at each start costs little: sizes, times and inodes. A change of the content changes the ctime, which
no program can set (inode(7)), even if the mtime is put back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from kmlab.common import folder_tree, paths
from kmlab.common.errors import LabError
from kmlab.host.disk import disks

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_CHECKED = "checked.json"


def identity(file: Path) -> list[int]:
    """Return what changes when a file's content does, without reading it: size, times and inode."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def vouch(folder: Path, files: Mapping[str, object]) -> None:
    """Note that these files were found intact just now. A cache that cannot be written is read again next time."""
    with contextlib.suppress(LabError):
        paths.write_json(folder / _CHECKED, {"boot": _boot(), "files": files})


def vouched(folder: Path) -> dict[str, object]:
    """Return the identities of the files that were found intact in this boot of the host."""
    value = paths.read_json(folder / _CHECKED)
    if not isinstance(value, dict) or value.get("boot") != _boot() or not isinstance(value.get("files"), dict):
        return {}
    return dict(value["files"])


def tree_identity(folder: Path) -> str:
    """Return a digest of what changes when anything in a tree does, without reading its files."""
    whole = hashlib.sha256()
    with folder_tree.opened(folder) as top:
        for entry in folder_tree.walk(top):
            at = entry.status
            about = [entry.path, at.st_mode, at.st_ino, at.st_ctime_ns]
            whole.update(repr([*about, at.st_size, at.st_mtime_ns]).encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def tree_digest(folder: Path) -> str:
    """Return a digest of all names, permissions, links and bytes in a tree."""
    whole = hashlib.sha256()
    with folder_tree.opened(folder) as top:
        for entry in folder_tree.walk(top):
            mode = entry.status.st_mode
            content = ""
            if stat.S_ISLNK(mode):
                content = os.readlink(entry.name, dir_fd=entry.parent)
            elif stat.S_ISREG(mode):
                content = disks.digest(Path(f"/proc/self/fd/{entry.parent}", entry.name))
            whole.update(repr([entry.path, mode, content]).encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
