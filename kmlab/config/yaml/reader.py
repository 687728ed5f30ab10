"""Read kmlab's YAML files (lab.yaml, images/, guests/) into dataclasses. Every error has file:line.

`tree` parses the text into a tree, `schema` converts the tree to values; other rooms use this file only.
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
from kmlab.config.yaml.schema import ScalarParser, nearest
from kmlab.config.yaml.tree import MAX_BYTES, List, Map, Node, quoted

__all__ = ["Document", "Lines", "ScalarParser", "load", "nearest", "parse", "quoted", "read", "where"]

T = TypeVar("T")
Lines = Mapping[tuple[str, ...], int]


def load(path: Path, shape: type[T], /, **given: object) -> T:
    """Read a file as a `shape`. The `given` fields are filled in and are not keys of the file."""
    return read(path).into(shape, **given)


def read(path: Path) -> Document:
    """Read a file with the line of every key. Raise ConfigError if it cannot be read or is not YAML."""
    file = _displayed_path(path)
    try:
        # Before the open, because opening a FIFO without a writer blocks forever.
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
    """Parse the bytes of a YAML file. Errors call it `file`."""
    return Document(file, tree.parse(data, file))


@dataclass(frozen=True, slots=True)
class Document:
    """One well-formed YAML file."""

    file: str
    root: Map

    def into(self, shape: type[T], /, **given: object) -> T:
        """Convert the content to a `shape`. Raise ConfigError for an unknown or missing key or a wrong value."""
        return schema.build(self.root, shape, self.file, given)

    def lines(self) -> dict[tuple[str, ...], int]:
        """Return the line of every key and item by its path, such as `("guests", "debian", "image")`."""
        lines: dict[tuple[str, ...], int] = {(): self.root.line}
        _collect_lines(self.root, (), lines)
        return lines


def where(file: str, lines: Lines, *keys: str) -> str:
    """Return `"lab.yaml:6"` for the deepest part of the path `keys` that is in the file."""
    while keys and keys not in lines:
        keys = keys[:-1]
    return f"{file}:{lines.get(keys, 1)}"


def _collect_lines(node: Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    if isinstance(node, Map):
        for key, entry in node.entries.items():
            below = (*path, key)
            lines[below] = entry.line
            _collect_lines(entry.value, below, lines)
    elif isinstance(node, List):
        for index, item in enumerate(node.items):
            below = (*path, str(index))
            lines[below] = item.line
            _collect_lines(item, below, lines)


def _displayed_path(path: Path) -> str:
    """Return the absolute or the relative path, whichever is shorter. An editor can jump to both."""
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):
        return printable(str(path))
    return printable(min(str(path), relative, key=len))
