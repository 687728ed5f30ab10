"""Read the host's descriptions of UEFI firmware, and the sizes of its files (QEMU's docs/interop/firmware.json)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_SIZE = slice(24, 32)
"""The virtual size in a qcow2 header (QEMU's docs/interop/qcow2.txt)."""


def folders() -> list[Path]:
    """Return the folders with descriptors: the user's, the administrator's, the distribution's."""
    user = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return [Path(user) / "qemu/firmware", Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware")]


def descriptors(places: Sequence[Path] | None = None) -> list[str]:
    """Return the contents of all descriptors, in the order of their names.

    A file hides files of the same name in later folders, also if it is empty.
    """
    found: dict[str, Path] = {}
    for folder in places if places is not None else folders():
        for path in folder.glob("*.json"):
            found.setdefault(path.name, path)
    return [text for name in sorted(found) if (text := _text(found[name])).strip()]


def flash_size(path: str) -> int | None:
    """Return the bytes of a flash image, raw or qcow2; None if it does not exist or cannot be read."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_QCOW2_SIZE.stop)
            if head.startswith(_QCOW2_MAGIC):
                return int.from_bytes(head[_QCOW2_SIZE], "big")
            return file.seek(0, os.SEEK_END)
    except OSError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
