"""Read, build and decompress Debian package files (deb(5), deb-control(5), dpkg-deb(1))."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from kmlab.common.errors import CommandFailed, LabError
from kmlab.common.events import Deadline, printable
from kmlab.host.process import command

NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Architectures: from `uname -m` to dpkg's name."""
_PATIENCE = 600.0

_AR = b"!<arch>\n"
_VERSION = b"2.0\n"


def fields(deb: Path) -> dict[str, str]:
    """Return the name, architecture and dependencies of a package. Raise LabError if the file is not a package."""
    names = ("Package", "Architecture", "Depends", "Pre-Depends")
    try:
        output = command.run(["dpkg-deb", "--field", deb, *names], deadline=Deadline(30)).output
    except CommandFailed as error:
        raise LabError(f"{printable(str(deb))}: not a Debian package: {printable(error.tail.strip(), 200)}") from None
    fields = dict(line.split(": ", 1) for line in output.splitlines() if line[:1].isalpha() and ": " in line)
    if "Package" not in fields:
        raise LabError(f"{printable(str(deb))}: not a Debian package with a name")
    return fields


def build(folder: Path, target: Path, about: Mapping[str, str], after: str = "") -> None:
    """Build the uncompressed package `target` of the files in `folder`, owned by root.

    `about` is the content of its control file. `after` is the script that runs after the installation.
    """
    control = folder / "DEBIAN"
    control.mkdir()
    control.chmod(0o755)
    (control / "control").write_text("".join(f"{name}: {value}\n" for name, value in about.items()))
    if after:
        (control / "postinst").write_text(f"#!/bin/sh\nset -e\n{after}")
        (control / "postinst").chmod(0o755)
    argv: list[str | Path] = ["dpkg-deb", "--build", "--root-owner-group", "--nocheck", "-Znone", folder, target]
    command.run(argv, deadline=Deadline(_PATIENCE))


def unpack(deb: Path, folder: Path, deadline: Deadline) -> None:
    """Unpack a package's files into `folder`, without its scripts.

    Unlike `dpkg-deb --extract`, this follows the links of a merged /usr, as dpkg does: /lib stays a link to usr/lib.
    """
    script = 'dpkg-deb --fsys-tarfile "$1" | tar --extract --no-same-owner --keep-directory-symlink --directory="$2"'
    command.run(["sh", "-c", f"set -e; {script}", "sh", deb, folder], deadline=deadline)


def expand(deb: Path, deadline: Deadline) -> None:
    """Replace the package by an uncompressed one with the same content.

    This saves minutes in an emulated guest. dpkg can read such packages since 1.17.6 (dpkg-deb(1),
    --uniform-compression).
    """
    expanded = deb.with_suffix(".expanded")
    parts = {"control.tar": "--ctrl-tarfile", "data.tar": "--fsys-tarfile"}
    with expanded.open("wb") as file:
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
    expanded.replace(deb)


def _head(name: str, size: int) -> bytes:
    """Return the header of an ar member (ar(5))."""
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{size:<10}`\n".encode()
