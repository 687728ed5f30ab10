"""Define where a module is built, how a command of a build ends there, and why it failed."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from kmlab.common.errors import ConfigError
from kmlab.common.events import Deadline
from kmlab.kernel.build import kbuild
from kmlab.kernel.build.build_tree import parse_config
from kmlab.kernel.build.diagnostics import Diagnostic, parse_diagnostics
from kmlab.kernel.build.explain import build_reason, wants_config
from kmlab.provision.guest import Guest
from kmlab.run.build.products import Products
from kmlab.run.build.request import BuildRequest
from kmlab.run.build.source_folder import folder_in_guest, read_folder, read_source

_MOST_TEXT = 8 << 20
"""Bytes of C sources that are read to explain a failed build."""
_SOURCES = (".c", ".h", ".cpp", ".cc")


class Place(Protocol):
    """Where a module is built: a guest or a sandbox."""

    @property
    def suffix(self) -> str:
        """The words for the place, after the way of building."""

    @property
    def arch(self) -> str:
        """The machine, as `uname -m` says it."""

    @property
    def prepared(self) -> Path:
        """The record of what was prepared there."""

    def run(self, command: kbuild.BuildCommand) -> Ran:
        """Run one command to its end."""

    def read_config(self) -> Mapping[str, str]:
        """Return the options of the kernel that is built for; none if its headers do not have them."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command of a build ended, and the modules that are there now."""

    log: str
    code: int | None
    products: Products
    excess: str | None = None
    """Why it was stopped: a sentence."""


def diagnostics_of(log: str, request: BuildRequest, folder: str | None = None) -> tuple[Diagnostic, ...]:
    """Return what is wrong, with the paths of files that lie above the module's folder as seen from it.

    `folder` is where the sources were built, if that is not their own folder.
    """
    top, folder = str(folder_in_guest(request.name)), folder or str(request.folder)

    def seen(path: str | None) -> str | None:
        return posixpath.relpath(path, folder) if path and path.startswith(f"{top}/") else path

    found = parse_diagnostics(log, PurePosixPath(folder))
    return tuple(replace(each, file=seen(each.file)) for each in found)


def explain(
    place: Place,
    request: BuildRequest,
    ran: Ran,
    diagnostics: Sequence[Diagnostic],
    about: kbuild.Folder,
    release: str,
) -> str | None:
    """Return why a command built no module: a sentence with its remedy."""
    options = place.read_config() if ran.code and wants_config(ran.log) else None
    sources = read_sources(request.tree.folder)
    return build_reason(ran.log, ran.code, diagnostics, release, folder=about, sources=sources, config=options or None)


def read_sources(source: Path) -> Mapping[str, str]:
    """Read the module's C sources, as far as they may explain a failure; skip files that cannot be read."""
    texts: dict[str, str] = {}
    room = _MOST_TEXT
    for path, entry in read_folder(source).items():
        if entry.kind == "file" and path.endswith(_SOURCES) and 0 < entry.size <= room:
            with contextlib.suppress(ConfigError):
                texts[path] = read_source(source, path, room).decode("utf-8", "replace")
                room -= entry.size
    return texts


def read_config(guest: Guest, deadline: Deadline) -> Mapping[str, str]:
    """Read the options of the guest's kernel from its headers; return none if the headers do not have them."""
    return parse_config(guest.run(f"cat {config_of(guest.record.release)} 2> /dev/null", deadline).text)


def config_of(release: str) -> str:
    """Return where a kernel's headers have its .config."""
    return f"/lib/modules/{release}/build/.config"
