"""Convert the tree of a YAML file to frozen dataclasses. Errors name the line.

Rules beyond the types: a scalar's source text counts, not the type that YAML guesses (a kernel 6.10 stays "6.10");
a single scalar where a list is expected becomes a list of one; in a mapping of named things, such as `guests`, the key
becomes the value's `name`.
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


class ScalarParser(NamedTuple):
    """Annotate a field with its parser: `Annotated[int, ScalarParser(parse_size)]`.

    `parse` raises ConfigError("must be …", hint) for a text that it rejects. The caller adds file, line and key.
    """

    parse: Callable[[str], object]
    json_schema: tuple[tuple[str, object], ...] = ()
    """The same rule as JSON Schema keywords for `report.json_schema`; a tuple, as annotations must be hashable."""


class Kinds(NamedTuple):
    """Annotate a field that takes one of several kinds: `edu`, `{nvme: {size: 1G}}`, or `{nvme: 1G}`.

    A kind is a dataclass. Its name alone stands for all defaults, and a value alone for its first field.
    """

    what: str
    """Completes "must be …"."""
    shapes: tuple[tuple[str, type], ...]
    """By name."""


def build(root: Map, shape: type[T], file: str, given: Mapping[str, object]) -> T:
    """Convert the whole file to a `shape`. The `given` fields are filled in and are not keys of the file."""
    value = _struct(root, shape, YamlLocation(file, root.line, _ROOT), given)
    assert isinstance(value, shape)
    return value


def nearest(word: str, names: Collection[str], kind: str) -> str:
    """Return the hint for an unknown name: the most similar of `names`, or all of them."""
    # difflib is quadratic, and a typing error does not make a page of text.
    similar = difflib.get_close_matches(word, names, n=1, cutoff=0.6) if len(word) <= _LONGEST_WORD else []
    if similar:
        return f"did you mean {quoted(similar[0])}?"
    return f"{kind}: {', '.join(names)}" if names else f"there are no {kind}"


class YamlLocation(NamedTuple):
    """A place in the file, and how messages call it."""

    file: str
    line: int
    what: str

    def at(self, line: int) -> YamlLocation:
        return self._replace(line=line)

    def inside(self, key: str, line: int) -> YamlLocation:
        what = quoted(key) if self.what == _ROOT else f"{quoted(key)} of {self.what}"
        return YamlLocation(self.file, line, what)

    def named(self, key: str, line: int) -> YamlLocation:
        """Return the location of one named thing: `guest 'debian'` rather than `'debian' of 'guests'`."""
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


def _value(node: Node, kind: Any, location: YamlLocation) -> object:
    """Convert `node` to a `kind`. `location` has the line of its key."""
    bare, notes = _bare(kind)
    if isinstance(node, Text):
        location = location.at(node.line)
    for note in notes:
        if isinstance(note, ScalarParser):
            return _read(_text(node, bare, location), note, location)
        if isinstance(note, Kinds):
            return _kind(node, note, location)
    return _plain_value(node, bare, location)


def _plain_value(node: Node, kind: Any, location: YamlLocation) -> object:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _union(node, get_args(kind), location)
    if origin is Literal:
        return _literal(node, kind, location)
    if origin in _LISTS:
        return _list(node, kind, location)
    if origin in _MAPS:
        return _map(node, kind, location)
    if _is_struct(kind):
        return _struct(node, kind, location, {})
    return _scalar(_text(node, kind, location), kind, location)


def _struct(node: Node, shape: type, location: YamlLocation, given: Mapping[str, object]) -> object:
    if not isinstance(node, Map):
        raise location.error(f"must be a mapping, not {_describe(node)}", _example(shape, given))
    fields = {name: f for name, f in _fields(shape).items() if name not in given}
    for key, entry in node.entries.items():
        if key not in fields:
            raise _unknown(key, entry, fields, location)
    values = dict(given)
    for name, field in fields.items():
        if name not in node.entries:
            if field.required:
                raise location.error(f"has no {quoted(name)}", f"add a line `{name}: …`")
            continue
        line, value = node.entries[name]
        # `modules:` whose lines are all commented out means the same as no `modules:`.
        if isinstance(value, Text) and value.empty and not field.required and _is_collection(field.kind):
            continue
        values[name] = _value(value, field.kind, location.inside(name, line))
    try:
        return shape(**values)
    except ConfigError as error:
        raise location.error(error.message, error.hint) from error


def _kind(node: Node, kinds: Kinds, location: YamlLocation) -> object:
    shapes = dict(kinds.shapes)
    if isinstance(node, Text):
        name, entry = node.text, Entry(node.line, Text(node.line, "", plain=True))
    elif isinstance(node, Map) and len(node.entries) == 1:
        ((name, entry),) = node.entries.items()
    else:
        raise location.error(f"must be {kinds.what}, alone or as {{KIND: …}}", f"known: {', '.join(shapes)}")
    if name not in shapes:
        raise location.at(entry.line).error(
            f"must be {kinds.what}, not {quoted(name)}", nearest(name, list(shapes), "known")
        )
    shape, options = shapes[name], entry.value
    if isinstance(options, Text) and options.empty:
        options = Map(entry.line, {}, 1)
    elif not isinstance(options, Map):
        first = next(iter(_fields(shape)), None)
        if first is None:
            raise location.at(entry.line).error(f"has options, and {quoted(name)} takes none", f"write `{name}` alone")
        options = Map(entry.line, {first: Entry(entry.line, options)}, options.size + 1)
    return _struct(options, shape, YamlLocation(location.file, entry.line, f"{quoted(name)} of {location.what}"), {})


def _unknown(key: str, entry: Entry, keys: Collection[str], location: YamlLocation) -> ConfigError:
    inside = "" if location.what == _ROOT else f" in {location.what}"
    return ConfigError(
        f"{location.file}:{entry.line}: unknown key {quoted(key)}{inside}", nearest(key, keys, "known keys")
    )


def _list(node: Node, kind: Any, location: YamlLocation) -> object:
    make = tuple if get_origin(kind) is tuple else list
    (of, *_) = get_args(kind)
    if isinstance(node, List):
        return make(
            _value(item, of, YamlLocation(location.file, item.line, f"item {index} of {location.what}"))
            for index, item in enumerate(node.items, start=1)
        )
    if isinstance(node, Map) and not _is_struct(_bare(of)[0]):
        raise location.error("must be a list, not a mapping", "write [one, two], or one line `- one` for each")
    return make([_value(node, of, location)])


def _map(node: Node, kind: Any, location: YamlLocation) -> object:
    if not isinstance(node, Map):
        raise location.error(f"must be a mapping, not {_describe(node)}", "write lines of `name: value` below it")
    key_kind, value_kind = get_args(kind)
    takes_name = _is_struct(value_kind) and "name" in _fields(value_kind)
    values: dict[object, object] = {}
    for key, entry in node.entries.items():
        below = location.named(key, entry.line) if _is_struct(value_kind) else location.inside(key, entry.line)
        name = _value(Text(entry.line, key, plain=False), key_kind, below)
        if takes_name:
            values[name] = _struct(entry.value, value_kind, below, {"name": name})
        else:
            values[name] = _value(entry.value, value_kind, below)
    return values


def _union(node: Node, kinds: Sequence[Any], location: YamlLocation) -> object:
    if isinstance(node, Text) and node.empty and type(None) in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not type(None)]
    if len(kinds) == 1:
        return _value(node, kinds[0], location)
    if isinstance(node, Text):
        for kind in (kind for scalar in (bool, int, float) for kind in kinds if _bare(kind)[0] is scalar):
            if node.plain and _UNQUOTED[_bare(kind)[0]].fullmatch(node.text):
                return _value(node, kind, location)
    fitting = [kind for kind in kinds if _fits(node, _bare(kind)[0])]
    if not fitting:
        names = [_kind_name(_bare(kind)[0]) for kind in kinds]
        raise location.error(f"must be {_choice(names)}, not {_describe(node)}")
    if isinstance(node, Map) and all(_is_struct(kind) for kind in fitting):
        return _struct(node, _closest_shape(node, fitting, location), location, {})
    return _value(node, fitting[0], location)


def _fits(node: Node, kind: Any) -> bool:
    if isinstance(node, Map):
        return _is_struct(kind) or get_origin(kind) in _MAPS
    if isinstance(node, List):
        return get_origin(kind) in _LISTS
    return not (_is_struct(kind) or get_origin(kind) in {*_MAPS, *_LISTS})


def _closest_shape(node: Map, shapes: Sequence[type], location: YamlLocation) -> type:
    """Return the shape that shares the most keys with `node`, so that its error messages fit."""
    best = max(shapes, key=lambda shape: len(node.entries.keys() & _fields(shape).keys()))
    if not node.entries.keys() & _fields(best).keys():
        keys = list(dict.fromkeys(key for shape in shapes for key in _fields(shape)))
        for key, entry in node.entries.items():
            raise _unknown(key, entry, keys, location)
    return best


def _literal(node: Node, kind: Any, location: YamlLocation) -> object:
    text = _text(node, kind, location).text
    choices = [str(value) for value in get_args(kind)]
    if text not in choices:
        raise location.error(f"must be {_choice(choices)}, not {_describe(node)}", _near(text, choices))
    return get_args(kind)[choices.index(text)]


def _scalar(node: Text, kind: Any, location: YamlLocation) -> object:
    text = node.text
    if kind is str:
        return text
    if kind is Path:
        if not text:
            raise location.error("must be a path, not ''")
        return Path(text)
    if kind is bool:
        if text.lower() not in {"true", "false"}:
            hint = "write true or false" if text.lower() in {"yes", "no", "on", "off", "y", "n", "1", "0"} else None
            raise location.error(f"must be true or false, not {_describe(node)}", hint)
        return text.lower() == "true"
    if kind in (int, float):
        if not _NUMBER[kind].fullmatch(text):
            raise location.error(f"must be {_kind_name(kind)}, not {_describe(node)}")
        return kind(text)
    raise TypeError(f"a YAML value cannot become {kind!r}")


def _text(node: Node, kind: Any, location: YamlLocation) -> Text:
    if not isinstance(node, Text):
        raise location.error(f"must be {_kind_name(kind)}, not {_describe(node)}")
    if node.plain and not node.text:
        raise location.error("has no value", "write one after the colon, or remove the line")
    return node


def _read(node: Text, note: ScalarParser, location: YamlLocation) -> object:
    try:
        return note.parse(node.text)
    except ConfigError as error:
        raise location.error(f"{error.message}, not {_describe(node)}", error.hint) from error


def _bare(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(kind) is Annotated:
        return get_args(kind)[0], kind.__metadata__
    return kind, ()


def _is_collection(kind: Any) -> bool:
    return get_origin(_bare(kind)[0]) in {*_MAPS, *_LISTS}


_LISTS = (tuple, list, Sequence)
_MAPS = (dict, Mapping)
_NUMBER = {
    int: re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII),
    float: re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?", re.ASCII),
}
# Where a field takes text as well as numbers, a text becomes a number only if it is printed the same way again: 010,
# 0x10 and 1.50 stay text and reach a kernel module unchanged.
_UNQUOTED = {bool: re.compile("true|false|True|False|TRUE|FALSE"), **_NUMBER}
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def _kind_name(kind: Any) -> str:
    if kind in _NAMES:
        return _NAMES[kind]
    if _is_struct(kind):
        required = [name for name, field in _fields(kind).items() if field.required]
        return f"{{{', '.join(f'{name}: …' for name in required)}}}"
    if get_origin(kind) is Literal:
        return _choice([str(value) for value in get_args(kind)])
    return "a list" if get_origin(kind) in _LISTS else "a mapping"


def _choice(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _near(word: str, names: Collection[str]) -> str | None:
    hint = nearest(word, names, "known")
    return hint if hint.startswith("did") else None


def _describe(node: Node) -> str:
    if isinstance(node, List):
        return "a list"
    if isinstance(node, Map):
        return "a mapping"
    return "nothing" if node.plain and not node.text else quoted(node.text)


def _example(shape: type, given: Mapping[str, object]) -> str:
    required = [name for name, field in _fields(shape).items() if field.required and name not in given]
    return f"write {{{', '.join(f'{name}: …' for name in required)}}}" if required else "write lines of `key: value`"
