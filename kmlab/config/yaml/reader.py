"""The one way kmlab reads its YAML files (lab.yaml, images/, guests/): typed, every error with file:line.

`yamltree` makes a tree of the text, `yamlshape` makes values of the tree; this is the door to both.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.config.yaml import schema, tree
from kmlab.config.yaml.schema import Reads, nearest
from kmlab.config.yaml.tree import MAX_BYTES, List, Map, Node, quoted

__all__ = ["Document", "Lines", "Reads", "load", "nearest", "parse", "quoted", "read", "where"]

T = TypeVar("T")
Lines = Mapping[tuple[str, ...], int]


def load(path: Path, shape: type[T], /, **given: object) -> T:
    """The file's content as a `shape`; `given` fields are filled in and are not keys of the file."""
    return read(path).into(shape, **given)


def read(path: Path) -> Document:
    """The file's content with the line of every key."""
    file = _shown(path)
    try:
        # Asked before the open: opening a FIFO that nobody writes to waits for ever.
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):
            raise ConfigError(f"{file}: {'a folder' if stat.S_ISDIR(kind) else 'a special file'}, not a YAML file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not a file name: {error}") from error
    return parse(data, file)


def parse(data: bytes, file: str) -> Document:
    """The same for a YAML file that is in memory; `file` is what errors call it."""
    return Document(file, tree.parse(data, file))


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML file that is known to be well-formed."""

    file: str
    root: Map

    def into(self, shape: type[T], /, **given: object) -> T:
        """The content as a `shape`: no unknown keys, none missing, every value of its type."""
        return schema.build(self.root, shape, self.file, given)

    def lines(self) -> dict[tuple[str, ...], int]:
        """The line of every key and item by its path, such as `("guests", "debian", "image")`."""
        found: dict[tuple[str, ...], int] = {(): self.root.line}
        _number(self.root, (), found)
        return found


def where(file: str, lines: Lines, *keys: str) -> str:
    """`"lab.yaml:6"` for the deepest part of the path `keys` that stands in the file."""
    while keys and keys not in lines:
        keys = keys[:-1]
    return f"{file}:{lines.get(keys, 1)}"


def _number(node: Node, path: tuple[str, ...], found: dict[tuple[str, ...], int]) -> None:
    if isinstance(node, Map):
        for key, entry in node.entries.items():
            below = (*path, key)
            found[below] = entry.line
            _number(entry.value, below, found)
    elif isinstance(node, List):
        for index, item in enumerate(node.items):
            below = (*path, str(index))
            found[below] = item.line
            _number(item, below, found)


def _shown(path: Path) -> str:
    """The shorter of the two ways to name the file, so that an editor can still jump to it."""
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):
        return printable(str(path))
    return printable(min(str(path), relative, key=len))
