"""Know the packages of the host's distribution that have what kmlab needs (packages.tsv)."""

from __future__ import annotations

import functools
import re
import shutil
from pathlib import Path
from typing import NamedTuple

_TABLE = Path(__file__).with_name("packages.tsv")
_OS_RELEASE = Path("/etc/os-release")
MANAGERS = ("apt-get", "dnf", "pacman", "zypper")
_FAMILIES = {
    **dict.fromkeys(("debian", "ubuntu"), "apt-get"),
    **dict.fromkeys(("fedora", "rhel", "centos"), "dnf"),
    "arch": "pacman",
    **dict.fromkeys(("suse", "opensuse"), "zypper"),
}
"""The package manager of each family, by ID and ID_LIKE in os-release(5)."""
_INSTALL = {
    "apt-get": ("apt-get", "install", "--yes", "--no-install-recommends"),
    "dnf": ("dnf", "install", "--assumeyes", "--setopt=install_weak_deps=False"),
    "pacman": ("pacman", "--sync", "--needed", "--noconfirm"),
    "zypper": ("zypper", "--non-interactive", "install", "--no-recommends"),
}


class Row(NamedTuple):
    """One line of the table."""

    use: str
    """run, test or docs."""
    arch: str
    programs: tuple[str, ...]
    packages: dict[str, str]
    """By package manager; empty if the distribution has none."""


@functools.cache
def table() -> tuple[Row, ...]:
    rows = []
    for line in _TABLE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            use, arch, programs, *packages = ("" if word == "-" else word for word in line.split("\t"))
            names = tuple(programs.split(",")) if programs else ()
            rows.append(Row(use, arch, names, dict(zip(MANAGERS, packages, strict=True))))
    return tuple(rows)


def manager() -> str:
    """Return this host's package manager: by its distribution, or else the first that is installed."""
    try:
        text = _OS_RELEASE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    words = " ".join(re.findall(r'^ID(?:_LIKE)?="?([^"\n]*)', text, re.MULTILINE)).split()
    found = (_FAMILIES.get(word.partition("-")[0]) for word in words)
    installed = (name for name in MANAGERS if shutil.which(name))
    return next((name for name in found if name), None) or next(installed, MANAGERS[0])


def programs() -> list[str]:
    """Return the programs that kmlab runs."""
    return [program for row in table() if row.use == "run" for program in row.programs]


def package_of(what: str) -> str:
    """Return this host's package for a program or for a package of Debian; empty if the distribution has none.

    If the table does not have it, return its own name.
    """
    rows = [row for row in table() if what in (*row.programs, row.packages["apt-get"])]
    return rows[0].packages[manager()] if rows else what


def install_command(package: str) -> tuple[str, ...]:
    """Return the command that installs one of this host's packages, as root."""
    return (*_INSTALL[manager()], package)


def install_hint(what: str) -> str:
    """Return the hint for people who miss a program or a package of Debian."""
    package = package_of(what)
    if not package:
        return f"this distribution has no package with {what}: see docs/hosts.md"
    return f"sudo {' '.join(install_command(package)[:2])} {package}   (or: make setup)"
