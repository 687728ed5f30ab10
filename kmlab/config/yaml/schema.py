"""Fits the tree of a YAML file to frozen dataclasses, and names the line of what does not.

Rules beyond the types: a scalar's source text counts, not what YAML would guess from it (a kernel 6.10
stays "6.10"); a lone scalar where a list is wanted is a list of one; in a mapping of named things, such as
`guests`, the key becomes the value's `name`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from kmlab.common.errors import ConfigError
from kmlab.config.yaml.tree import Entry, List, Map, Node, Text, quoted

T = TypeVar("T")


class Reads(NamedTuple):
    """`Annotated[int, Reads(size)]`: the value is what `parse` makes of the scalar's text.

    `parse` raises ConfigError("must be …", hint) for what it cannot take; what it is about is put before it.
    """

    parse: Callable[[str], object]
    says: tuple[tuple[str, object], ...] = ()
    """The same in the words of JSON Schema, as far as it has them; see `report.json_schema`. Hashable, as types are."""


def build(root: Map, shape: type[T], file: str, given: Mapping[str, object]) -> T:
    """The whole file as a `shape`; `given` fields are filled in and are not keys of the file."""
    value = _struct(root, shape, YamlLocation(file, root.line, _ROOT), given)
    assert isinstance(value, shape)
    return value


def nearest(word: str, known: Collection[str], kind: str) -> str:
    """The hint for a name that is not known: the nearest one that is, or all of them."""
    # difflib is quadratic, and nobody mistypes a name into a page of text.
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6) if len(word) <= _LONGEST_WORD else []
    if near:
        return f"did you mean {quoted(near[0])}?"
    return f"{kind}: {', '.join(known)}" if known else f"there are no {kind}"


class YamlLocation(NamedTuple):
    """Where in the file we are, and what it is called in a message."""

    file: str
    line: int
    what: str

    def at(self, line: int) -> YamlLocation:
        return self._replace(line=line)

    def inside(self, key: str, line: int) -> YamlLocation:
        what = quoted(key) if self.what == _ROOT else f"{quoted(key)} of {self.what}"
        return YamlLocation(self.file, line, what)

    def named(self, key: str, line: int) -> YamlLocation:
        """The spot of one named thing: `guest 'debian'` rather than `'debian' of 'guests'`."""
        plural = self.what.partition(" of ")[0].strip("'")
        return YamlLocation(self.file, line, f"{plural.removesuffix('s')} {quoted(key)}")

    def error(self, message: str, hint: str | None = None) -> ConfigError:
        return ConfigError(f"{self.file}:{self.line}: {self.what} {message}", hint)


_ROOT = "the file"
_LONGEST_WORD = 64


class _Field(NamedTuple):
    kind: Any
    required: bool


@functools.cache
def _fields(shape: Any) -> dict[str, _Field]:
    kinds = get_type_hints(shape, include_extras=True)
    missing = dataclasses.MISSING
    return {
        f.name: _Field(kinds[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(shape)
    }


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _value(node: Node, kind: Any, spot: YamlLocation) -> object:
    """`node` as a `kind`; `spot` has the line of its key."""
    bare, notes = _bare(kind)
    if isinstance(node, Text):
        spot = spot.at(node.line)
    for note in notes:
        if isinstance(note, Reads):
            return _read(_text(node, bare, spot), note, spot)
    return _plain_value(node, bare, spot)


def _plain_value(node: Node, kind: Any, spot: YamlLocation) -> object:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _union(node, get_args(kind), spot)
    if origin is Literal:
        return _literal(node, kind, spot)
    if origin in _LISTS:
        return _list(node, kind, spot)
    if origin in _MAPS:
        return _map(node, kind, spot)
    if _is_struct(kind):
        return _struct(node, kind, spot, {})
    return _scalar(_text(node, kind, spot), kind, spot)


def _struct(node: Node, shape: type, spot: YamlLocation, given: Mapping[str, object]) -> object:
    if not isinstance(node, Map):
        raise spot.error(f"must be a mapping, not {_called(node)}", _example(shape, given))
    fields = {name: f for name, f in _fields(shape).items() if name not in given}
    for key, entry in node.entries.items():
        if key not in fields:
            raise _unknown(key, entry, fields, spot)
    values = dict(given)
    for name, wanted in fields.items():
        if name not in node.entries:
            if wanted.required:
                raise spot.error(f"has no {quoted(name)}", f"add a line `{name}: …`")
            continue
        line, value = node.entries[name]
        # `modules:` whose lines are all commented out means the same as no `modules:`.
        if isinstance(value, Text) and value.empty and not wanted.required and _holds_many(wanted.kind):
            continue
        values[name] = _value(value, wanted.kind, spot.inside(name, line))
    try:
        return shape(**values)
    except ConfigError as error:
        raise spot.error(error.message, error.hint) from error


def _unknown(key: str, entry: Entry, known: Collection[str], spot: YamlLocation) -> ConfigError:
    inside = "" if spot.what == _ROOT else f" in {spot.what}"
    return ConfigError(
        f"{spot.file}:{entry.line}: unknown key {quoted(key)}{inside}", nearest(key, known, "known keys")
    )


def _list(node: Node, kind: Any, spot: YamlLocation) -> object:
    make = tuple if get_origin(kind) is tuple else list
    (of, *_) = get_args(kind)
    if isinstance(node, List):
        return make(
            _value(item, of, YamlLocation(spot.file, item.line, f"item {index} of {spot.what}"))
            for index, item in enumerate(node.items, start=1)
        )
    if isinstance(node, Map) and not _is_struct(_bare(of)[0]):
        raise spot.error("must be a list, not a mapping", "write [one, two], or one line `- one` for each")
    return make([_value(node, of, spot)])


def _map(node: Node, kind: Any, spot: YamlLocation) -> object:
    if not isinstance(node, Map):
        raise spot.error(f"must be a mapping, not {_called(node)}", "write lines of `name: value` below it")
    key_kind, value_kind = get_args(kind)
    takes_name = _is_struct(value_kind) and "name" in _fields(value_kind)
    values: dict[object, object] = {}
    for key, entry in node.entries.items():
        below = spot.named(key, entry.line) if _is_struct(value_kind) else spot.inside(key, entry.line)
        name = _value(Text(entry.line, key, plain=False), key_kind, below)
        if takes_name:
            values[name] = _struct(entry.value, value_kind, below, {"name": name})
        else:
            values[name] = _value(entry.value, value_kind, below)
    return values


def _union(node: Node, kinds: Sequence[Any], spot: YamlLocation) -> object:
    if isinstance(node, Text) and node.empty and type(None) in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not type(None)]
    if len(kinds) == 1:
        return _value(node, kinds[0], spot)
    if isinstance(node, Text):
        for kind in (kind for want in (bool, int, float) for kind in kinds if _bare(kind)[0] is want):
            if node.plain and _BY_LOOKS[_bare(kind)[0]].fullmatch(node.text):
                return _value(node, kind, spot)
    fitting = [kind for kind in kinds if _fits(node, _bare(kind)[0])]
    if not fitting:
        names = [_kind_name(_bare(kind)[0]) for kind in kinds]
        raise spot.error(f"must be {_choice(names)}, not {_called(node)}")
    if isinstance(node, Map) and all(_is_struct(kind) for kind in fitting):
        return _struct(node, _most_alike(node, fitting, spot), spot, {})
    return _value(node, fitting[0], spot)


def _fits(node: Node, kind: Any) -> bool:
    if isinstance(node, Map):
        return _is_struct(kind) or get_origin(kind) in _MAPS
    if isinstance(node, List):
        return get_origin(kind) in _LISTS
    return not (_is_struct(kind) or get_origin(kind) in {*_MAPS, *_LISTS})


def _most_alike(node: Map, shapes: Sequence[type], spot: YamlLocation) -> type:
    """Of several shapes the one whose keys these are, so that its errors are the ones that help."""
    best = max(shapes, key=lambda shape: len(node.entries.keys() & _fields(shape).keys()))
    if not node.entries.keys() & _fields(best).keys():
        known = list(dict.fromkeys(key for shape in shapes for key in _fields(shape)))
        for key, entry in node.entries.items():
            raise _unknown(key, entry, known, spot)
    return best


def _literal(node: Node, kind: Any, spot: YamlLocation) -> object:
    text = _text(node, kind, spot).text
    known = [str(value) for value in get_args(kind)]
    if text not in known:
        raise spot.error(f"must be {_choice(known)}, not {_called(node)}", _near(text, known))
    return get_args(kind)[known.index(text)]


def _scalar(node: Text, kind: Any, spot: YamlLocation) -> object:
    text = node.text
    if kind is str:
        return text
    if kind is Path:
        if not text:
            raise spot.error("must be a path, not ''")
        return Path(text)
    if kind is bool:
        if text.lower() not in {"true", "false"}:
            hint = "write true or false" if text.lower() in {"yes", "no", "on", "off", "y", "n", "1", "0"} else None
            raise spot.error(f"must be true or false, not {_called(node)}", hint)
        return text.lower() == "true"
    if kind in (int, float):
        if not _NUMBER[kind].fullmatch(text):
            raise spot.error(f"must be {_kind_name(kind)}, not {_called(node)}")
        return kind(text)
    raise TypeError(f"a YAML value cannot become {kind!r}")


def _text(node: Node, kind: Any, spot: YamlLocation) -> Text:
    if not isinstance(node, Text):
        raise spot.error(f"must be {_kind_name(kind)}, not {_called(node)}")
    if node.plain and not node.text:
        raise spot.error("has no value", "write one after the colon, or remove the line")
    return node


def _read(node: Text, note: Reads, spot: YamlLocation) -> object:
    try:
        return note.parse(node.text)
    except ConfigError as error:
        raise spot.error(f"{error.message}, not {_called(node)}", error.hint) from error


def _bare(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(kind) is Annotated:
        return get_args(kind)[0], kind.__metadata__
    return kind, ()


def _holds_many(kind: Any) -> bool:
    return get_origin(_bare(kind)[0]) in {*_MAPS, *_LISTS}


_LISTS = (tuple, list, Sequence)
_MAPS = (dict, Mapping)
_NUMBER = {
    int: re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII),
    float: re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?", re.ASCII),
}
# Where a shape takes text as well as numbers, only what is written back as it was read stops being text: 010,
# 0x10 and 1.50 reach a kernel module as they stand.
_BY_LOOKS = {bool: re.compile("true|false|True|False|TRUE|FALSE"), **_NUMBER}
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def _kind_name(kind: Any) -> str:
    if kind in _NAMES:
        return _NAMES[kind]
    if _is_struct(kind):
        required = [name for name, wanted in _fields(kind).items() if wanted.required]
        return f"{{{', '.join(f'{name}: …' for name in required)}}}"
    if get_origin(kind) is Literal:
        return _choice([str(value) for value in get_args(kind)])
    return "a list" if get_origin(kind) in _LISTS else "a mapping"


def _choice(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _near(word: str, known: Collection[str]) -> str | None:
    hint = nearest(word, known, "known")
    return hint if hint.startswith("did") else None


def _called(node: Node) -> str:
    if isinstance(node, List):
        return "a list"
    if isinstance(node, Map):
        return "a mapping"
    return "nothing" if node.plain and not node.text else quoted(node.text)


def _example(shape: type, given: Mapping[str, object]) -> str:
    required = [name for name, wanted in _fields(shape).items() if wanted.required and name not in given]
    return f"write {{{', '.join(f'{name}: …' for name in required)}}}" if required else "write lines of `key: value`"
