"""Parse untrusted YAML text into a tree of lines and source texts (YAML 1.2, www.yaml.org).

YAML guesses a scalar's type from its text: `6.10` becomes 6.1, `no` becomes false, `1:30` becomes 90. Here a scalar
keeps the text of the file, and `schema` converts it to the type that a dataclass requires.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import yaml

from kmlab.common.errors import ConfigError
from kmlab.common.events import printable

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
"""Counted with every alias expanded, because aliases make a YAML bomb large."""
MAX_DEPTH = 32


def parse(data: bytes, file: str) -> Map:
    """Parse the bytes of a YAML file. Errors call it `file`."""
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{file}: larger than {MAX_BYTES >> 10} KiB", "make the file smaller")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{file}:{line}: not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            "save the file as UTF-8",
        ) from error
    return _Tree(text.removeprefix("\ufeff"), file).root()


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar with its text in the file."""

    line: int
    text: str
    plain: bool
    """Whether it has no quotes, so that `true` and `4` can be more than text."""
    size: int = 1

    @property
    def empty(self) -> bool:
        """Return whether the key has no value, or `~` or `null`."""
        return self.plain and self.text in {"", "~", "null"}


@dataclass(frozen=True, slots=True)
class List:
    line: int
    items: tuple[Node, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Map:
    line: int
    entries: dict[str, Entry]
    size: int


class Entry(NamedTuple):
    line: int
    """The line of the key."""
    value: Node


Node = Text | List | Map


def quoted(text: str) -> str:
    """Quote a word of the user's, so that it is safe to print in a message."""
    return f"'{printable(text, 60)}'"


@dataclass(slots=True)
class _Tree:
    """Build the tree of one document from PyYAML's events.

    PyYAML's own composer recurses without a limit and expands aliases without counting.
    """

    text: str
    file: str
    anchors: dict[str, Node] = field(default_factory=dict)
    values: int = 0
    events: Iterator[yaml.Event] = field(init=False)

    def root(self) -> Map:
        self.events = self._events()
        node: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if node is not None:
                    raise self._error(event, "a second document begins", "one file is one document")
                node = self._node(next(self.events), "", 0)
        if node is None or (isinstance(node, Text) and node.empty):
            raise ConfigError(f"{self.file}:1: the file is empty")
        if not isinstance(node, Map):
            what = "a list" if isinstance(node, List) else "text"
            raise ConfigError(
                f"{self.file}:{node.line}: the file must be a mapping, not {what}",
                "write lines of `key: value`",
            )
        return node

    def _node(self, event: yaml.Event, of: str, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._expand_alias(event)
        if depth > MAX_DEPTH:
            raise self._error(event, f"more than {MAX_DEPTH} levels deep")
        self._count(event, 1)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise self._error(event, f"a tag ({printable(str(tag), 60)}) has no meaning here", "remove the tag")
        if isinstance(event, yaml.MappingStartEvent):
            node = self._map(event, of, depth)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._list(event, of, depth)
        else:
            assert isinstance(event, yaml.ScalarEvent)
            node = self._scalar(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _scalar(self, event: yaml.ScalarEvent) -> Node:
        text: str = event.value
        # Escapes ("\0", "\ud800") can write what no file name, command or output could carry.
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
            raise self._error(event, "a NUL character or half a surrogate pair")
        return Text(_line(event), text, plain=event.style is None)

    def _list(self, start: yaml.Event, of: str, depth: int) -> Node:
        items: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(event, of, depth + 1))
        return List(_line(start), tuple(items), 1 + sum(item.size for item in items))

    def _map(self, start: yaml.Event, of: str, depth: int) -> Node:
        entries: dict[str, Entry] = {}
        merged: list[Node] = []
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self._node(event, of, depth + 1)
            if not isinstance(key, Text):
                raise self._error(event, "a key must be one word, not a list or a mapping", _BRACES_HINT)
            value = self._node(next(self.events), key.text, depth + 1)
            if key.plain and key.text == "<<":
                merged += value.items if isinstance(value, List) else [value]
            elif key.text in entries:
                inside = f" in {quoted(of)}" if of else ""
                first = entries[key.text].line
                raise self._error(
                    event,
                    f"{quoted(key.text)} is given twice{inside}, first on line {first}",
                    "remove or rename one",
                )
            else:
                entries[key.text] = Entry(_line(event), value)
        for merge in merged:
            if not isinstance(merge, Map):
                raise ConfigError(f"{self.file}:{merge.line}: `<<` takes a mapping, or a list of mappings")
            entries = {**merge.entries, **entries}
        size = 1 + sum(1 + entry.value.size for entry in entries.values())
        return Map(_line(start), entries, size)

    def _expand_alias(self, event: yaml.AliasEvent) -> Node:
        node = self.anchors.get(str(event.anchor))
        if node is None:
            name = printable(str(event.anchor), 60)
            raise self._error(event, f"alias *{name} refers to no anchor above it", f"mark a value with &{name}")
        self._count(event, node.size)
        return node

    def _count(self, event: yaml.Event, more: int) -> None:
        self.values += more
        if self.values > MAX_VALUES:
            raise self._error(event, f"more than {MAX_VALUES} values", "aliases (*name) count expanded")

    def _events(self) -> Iterator[yaml.Event]:
        loader: yaml.SafeLoader | None = None
        try:
            loader = yaml.SafeLoader(self.text)
            while loader.check_event():
                yield loader.get_event()  # type: ignore[no-untyped-call]
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            raise ConfigError(
                f"{self.file}:{line}: a character that is not allowed in text: U+{error.character:04X}", "remove it"
            ) from error
        except yaml.MarkedYAMLError as error:
            raise self._syntax(error) from error
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            # An escape beyond the last code point ("\U00110000") makes chr() raise ValueError.
            line = loader.line + 1 if loader else 1
            raise ConfigError(f"{self.file}:{line}: not valid YAML: {printable(str(error), 120)}") from error

    def _syntax(self, error: yaml.MarkedYAMLError) -> ConfigError:
        lines = self.text.splitlines()
        mark = error.problem_mark or error.context_mark
        number = min(mark.line + 1 if mark else 1, max(1, len(lines)))
        context = ""
        if error.context and error.context_mark and error.context_mark.line + 1 != number:
            context = f" ({error.context} that began on line {error.context_mark.line + 1})"
        problem = str(error.problem or error)
        if "'\\t'" in problem or (lines and re.match(r" *\t", lines[number - 1])):
            return ConfigError(f"{self.file}:{number}: a tab where YAML requires spaces", "indent with spaces only")
        return ConfigError(
            f"{self.file}:{number}: not valid YAML: {printable(problem + context, 200)}",
            "look for a missing colon, bracket or quote, or a wrong indentation, on this line or just above",
        )

    def _error(self, event: yaml.Event, message: str, hint: str | None = None) -> ConfigError:
        return ConfigError(f"{self.file}:{_line(event)}: {message}", hint)


_BRACES_HINT = "text that begins with { or [ needs quotes"


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
