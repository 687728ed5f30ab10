"""A Debian package without its compression (deb(5)), which costs an emulated guest minutes and the host seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

from kmlab.events import Deadline
from kmlab.host import command

_AR = b"!<arch>\n"
_VERSION = b"2.0\n"


def expand(deb: Path, deadline: Deadline) -> None:
    """Replace the package by one with the same content, byte for byte, as plain tar archives.

    dpkg reads them so since 1.17.6 (dpkg-deb(1), --uniform-compression).
    """
    made = deb.with_suffix(".expanded")
    parts = {"control.tar": "--ctrl-tarfile", "data.tar": "--fsys-tarfile"}
    with made.open("wb") as file:
        file.write(_AR + _head("debian-binary", len(_VERSION)) + _VERSION)
        for name, option in parts.items():
            tar = deb.with_suffix(f".{name}")
            command.run(["sh", "-c", 'exec dpkg-deb "$1" "$2" > "$3"', "sh", option, deb, tar], deadline=deadline)
            size = tar.stat().st_size
            file.write(_head(name, size))
            with tar.open("rb") as content:
                shutil.copyfileobj(content, file)
            file.write(b"\n" * (size % 2))
            tar.unlink()
    made.replace(deb)


def _head(name: str, size: int) -> bytes:
    """ar's header of a member (ar(5))."""
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{size:<10}`\n".encode()
