"""Decide which folder of the host is sent for a module: its own, or a larger one that holds what its build needs."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.config.lab import Lab, Module
from kmlab.config.run_options import Options
from kmlab.kernel.build.outward import candidates, is_read, outward_paths
from kmlab.run.build.source_folder import Manifest, folder_in_guest, read_folder, read_source

_LARGEST = 64 << 20
"""Bytes of a root that is sent without being asked for."""
_MOST_FILES = 10_000
"""Files of such a root."""
_LARGEST_TEXT = 1 << 20
_MOST_TEXT = 16 << 20
"""Bytes of make files and sources that are read to find what they need; of one, and of all."""
_LOG_PATH = re.compile(r"[^\s'`\"()=:,]*\.\./[^\s'`\"()=:,]*")


@dataclass(frozen=True, slots=True)
class SourceTree:
    """What of the host is sent for a module, and where in it the module's folder lies."""

    folder: Path
    """The module's folder."""
    levels: int = 0
    """How many folders above it the root is."""
    needed: str = ""
    """What the build needs of the root: a path from the folder. Empty if the user named the root."""
    refused: str = ""
    """What the build needs and is not sent, and why: a sentence for people."""

    @property
    def root(self) -> Path:
        """Return the folder that is sent whole."""
        return self.folder.parents[self.levels - 1] if self.levels else self.folder

    @property
    def below(self) -> PurePosixPath:
        """Return the module's folder as seen from the root."""
        return PurePosixPath(*self.folder.parts[len(self.folder.parts) - self.levels :])

    def in_guest(self, name: str) -> PurePosixPath:
        """Return the module's folder in a guest or a sandbox; the root is `folder_in_guest(name)`."""
        return folder_in_guest(name) / self.below

    def manifest(self) -> Manifest:
        """Read everything that is sent."""
        return read_folder(self.root)


def find_tree(lab: Lab, module: Module, options: Options) -> SourceTree:
    """Return what is sent for a module. Raise ConfigError if the user's root does not hold its folder."""
    folder = lab.locate(module.source)
    given = options.root or (lab.locate(module.root) if module.root else None)
    if given is not None:
        return _given(folder, given)
    return _widened(SourceTree(folder), _Search(folder).outside())


def widen(tree: SourceTree, log: str) -> SourceTree | None:
    """Return a larger tree if a failed build's log names something above the folder that is there; None if not."""
    named = (os.path.normpath(path) for path in _LOG_PATH.findall(log))
    depth = tree.levels
    found = [
        path
        for path in dict.fromkeys(named)
        if depth < _ups(path) <= _DEEPEST and not os.path.isabs(path) and _found(tree.folder, path)
    ]
    wider = _widened(tree, found)
    return wider if wider.levels > depth else None


_DEEPEST = 16


def _given(folder: Path, root: Path) -> SourceTree:
    top, place = Path(os.path.realpath(root)), Path(os.path.realpath(folder))
    if not top.is_dir():
        raise ConfigError(f"{printable(str(root))}: no such folder", "root: is a folder that holds the module's")
    if not place.is_relative_to(top):
        raise ConfigError(
            f"{printable(str(root))}: does not hold the module's folder, {printable(str(folder))}",
            "name a folder above it as its root",
        )
    return SourceTree(place, len(place.parts) - len(top.parts))


def _widened(tree: SourceTree, outside: Sequence[str]) -> SourceTree:
    """Return the smallest tree that holds these paths, which lead out of the folder; or why it is not sent."""
    levels = max((_ups(path) for path in outside), default=0)
    if levels <= tree.levels:
        return tree
    folder = Path(os.path.realpath(tree.folder))
    needed = max(outside, key=_ups)
    root = folder.parents[min(levels, len(folder.parts) - 1) - 1]
    why = _why_not(folder, root, levels)
    if why:
        return SourceTree(tree.folder, tree.levels, tree.needed, f"{printable(needed, 120)} is not sent, because {why}")
    return SourceTree(folder, levels, needed)


def _why_not(folder: Path, root: Path, levels: int) -> str | None:
    """Return why a root is not sent without being asked for: what lies in it is not the module's, or it is large."""
    shown = printable(str(root))
    if levels >= len(folder.parts):
        return "it lies above the root of this host's files"
    top = next((above for above in (folder, *folder.parents) if os.path.lexists(above / ".git")), None)
    if top is not None and not root.is_relative_to(top):
        return f"{shown} is larger than the git repository"
    home = Path(os.path.realpath(os.path.expanduser("~")))
    if home.is_relative_to(root) or len(root.parts) < 3 or root.stat().st_mode & stat.S_IWOTH:
        return f"{shown} holds more than the module's project"
    try:
        read_folder(root, _LARGEST, _MOST_FILES)
    except ConfigError as error:
        return error.message
    return None


def _ups(path: str) -> int:
    """Return how many folders up a normal relative path leads."""
    parts = path.split("/")
    return next((number for number, part in enumerate(parts) if part != ".."), len(parts))


def _found(folder: Path, path: str) -> str | None:
    """Return what a path means that make files or sources name: itself, a source, or a folder; None for nothing."""
    for each in candidates(path):
        with contextlib.suppress(OSError):
            if os.path.lexists(folder / each):
                return each
    return None


class _Search:
    """Find what a folder's make files and sources need from above it, and what those files need in turn."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: set[str] = set()
        self._left = _MOST_TEXT

    def outside(self) -> list[str]:
        """Return the paths from the folder, each of which leads out of it and exists."""
        found: dict[str, None] = {}
        todo = list(self._folder_s_own())
        while todo:
            path = todo.pop()
            if path in found:
                continue
            found[path] = None
            todo += self._named_by(path)
        return list(found)

    def _folder_s_own(self) -> Iterator[str]:
        for path, entry in read_folder(self._folder).items():
            if entry.kind == "link" and not entry.target.startswith("/"):
                yield from self._outward([os.path.normpath(os.path.join(os.path.dirname(path), entry.target))])
            elif entry.kind == "file" and is_read(os.path.basename(path)) and entry.size <= _LARGEST_TEXT:
                yield from self._in_file(path)

    def _named_by(self, path: str) -> Iterator[str]:
        """Yield what a file above the folder needs, or what the files of a folder there need."""
        place = self._folder / path
        with contextlib.suppress(OSError, ConfigError):
            if place.is_file():
                yield from self._in_file(path)
            elif place.is_dir() and os.path.basename(path) != "..":
                for name in sorted(os.listdir(place)):
                    if is_read(name):
                        yield from self._in_file(f"{path}/{name}")

    def _in_file(self, path: str) -> Iterator[str]:
        if path in self._seen or self._left <= 0 or not is_read(os.path.basename(path)):
            return
        self._seen.add(path)
        with contextlib.suppress(OSError):
            text = _read(self._folder, path)
            self._left -= len(text)
            yield from self._outward(outward_paths(path, text))

    def _outward(self, paths: Iterator[str] | Sequence[str]) -> Iterator[str]:
        for path in paths:
            if 0 < _ups(path) <= _DEEPEST and (found := _found(self._folder, path)) and _ups(found):
                yield found


def _read(folder: Path, path: str) -> str:
    if not path.startswith(".."):
        return read_source(folder, path, _LARGEST_TEXT).decode("utf-8", "replace")
    place = folder / path
    if not stat.S_ISREG(place.lstat().st_mode):
        return ""
    with open(place, "rb") as file:
        return file.read(_LARGEST_TEXT).decode("utf-8", "replace")
