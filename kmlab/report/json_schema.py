"""Make JSON Schemas of the files that users write, and of the documents that commands print, from their types.

Like kmlab's YAML reader, the schemas accept more than the types: a single value for a list of one, and text
without the quotes that YAML would need. Docstrings of types and fields become descriptions, which editors show. Editors
read draft 7 (https://json-schema.org/draft-07/json-schema-release-notes).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints, is_typeddict

from kmlab.common.errors import ConfigError
from kmlab.config import catalog, lab
from kmlab.config.yaml.schema import Kinds, ScalarParser, nearest
from kmlab.config.yaml.tree import quoted
from kmlab.run import documents

DRAFT = "http://json-schema.org/draft-07/schema#"
_TEXT = ["string", "number", "boolean"]


class Subject(NamedTuple):
    """One file or document with a schema."""

    name: str
    """Its name for `kmlab schema`."""
    full: str
    """A document's `schema`, or the files that it describes."""
    about: str
    shape: Any
    hidden: tuple[str, ...] | None = None
    """For a file: fields of its dataclass that are not keys. None: this is a document."""


FILES = (
    Subject("lab", "lab.yaml", "guests, modules and what is expected of them", lab.Lab, ("path", "file", "lines")),
    Subject("image", "images/*.yaml", "an image that can be booted", catalog.Image, ("name",)),
    Subject("key", "images/keys/*.yaml", "a publisher's public key", catalog.Key, ("name", "keyring")),
    Subject("recipe", "guests/*/recipe.yaml", "how an image becomes a guest", catalog.RecipeFile, ()),
)


def subjects() -> list[Subject]:
    """Return everything that has a schema: the files, then the documents by their names."""
    taken = {subject.name for subject in FILES}
    document_subjects = []
    for shape in get_args(documents.Document):
        for full in get_args(get_type_hints(shape)["schema"]):
            short = full.removeprefix("kmlab.").rpartition("/")[0]
            document_subjects.append(
                Subject(full if short in taken else short, full, (_about(shape) or "").rstrip("."), shape)
            )
    return [*FILES, *sorted(document_subjects, key=lambda subject: subject.name)]


def schema(name: str) -> dict[str, Any]:
    """Return the schema of that name; a document's may also be the one it has in its `schema`, such as kmlab.run/1."""
    for subject in subjects():
        if name in (subject.name, subject.full):
            return _schema(subject)
    names = [subject.name for subject in subjects()]
    raise ConfigError(f"unknown schema {quoted(name)}", nearest(name, names, "schemas"))


def _schema(subject: Subject) -> dict[str, Any]:
    maker = _Maker(yaml=subject.hidden is not None)
    root = maker.struct(subject.shape, subject.hidden or ())
    whole = {"$schema": DRAFT, "title": subject.full, **root, "definitions": maker.definitions}
    return dict(json.loads(json.dumps(whole)))


class _Maker:
    """Makes one schema; shapes within it become definitions, so that one may hold itself."""

    def __init__(self, *, yaml: bool) -> None:
        self.yaml = yaml
        self.definitions: dict[str, Any] = {}

    def struct(self, shape: Any, hidden: Iterable[str] = ()) -> dict[str, Any]:
        """Return the schema of a dataclass or TypedDict, without the fields that are filled in from elsewhere."""
        kinds, descriptions = get_type_hints(shape, include_extras=True), _docstrings(shape)
        fields = kinds if is_typeddict(shape) else [field.name for field in dataclasses.fields(shape)]
        names = [name for name in fields if name not in set(hidden)]
        if is_typeddict(shape):
            required = [name for name in names if name in shape.__required_keys__]
        else:
            required = [field.name for field in dataclasses.fields(shape) if field.name in names and _required(field)]
            required = required if self.yaml else names
        properties = {}
        for name in names:
            schema = self.of(kinds[name])
            if self.yaml and name not in required and _holds_many(kinds[name]):
                schema = {"anyOf": [*_choices(schema), {"type": "null"}]}
            properties[name] = _described(schema, descriptions.get(name))
        made: dict[str, Any] = {"type": "object"}
        if about := _about(shape):
            made["description"] = about
        made["properties"] = properties
        if required:
            made["required"] = required
        if self.yaml:
            made["additionalProperties"] = False
        return made

    def of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of a type."""
        origin = get_origin(kind)
        if origin is Annotated:
            return self._annotated(get_args(kind)[0], kind.__metadata__)
        if origin in (Union, types.UnionType):
            return {"anyOf": [choice for each in get_args(kind) for choice in _choices(self.of(each))]}
        if origin is Literal:
            return {"enum": list(get_args(kind))}
        if origin in (list, tuple, Sequence):
            items = self.of(get_args(kind)[0])
            whole = {"type": "array", "items": items}
            return {"anyOf": [whole, *_choices(items)]} if self.yaml else whole
        if origin in (dict, Mapping):
            return self._mapping(*get_args(kind))
        if dataclasses.is_dataclass(kind) or is_typeddict(kind):
            return self._defined(kind)
        return {"type": self._plain(kind)}

    def _annotated(self, bare: Any, notes: Sequence[object]) -> dict[str, Any]:
        for note in notes:
            if isinstance(note, ScalarParser):
                return dict(note.json_schema)
            if isinstance(note, Kinds):
                return self._kinds(note)
            if isinstance(note, documents.OneOf):
                return {"type": "string", "enum": list(note.words)}
            if isinstance(note, documents.FieldsOf):
                return self._defined(note.shape)
        return self.of(bare)

    def _kinds(self, kinds: Kinds) -> dict[str, Any]:
        alone = [name for name, shape in kinds.shapes if not any(map(_required, dataclasses.fields(shape)))]
        choices: list[dict[str, Any]] = [{"enum": alone}]
        for name, shape in kinds.shapes:
            options = [self._defined(shape)]
            if first := next(iter(dataclasses.fields(shape)), None):
                options += _choices(self.of(get_type_hints(shape, include_extras=True)[first.name]))
            options += [{"type": "null"}] if name in alone else []
            properties = {name: {"anyOf": options}}
            entry = {"type": "object", "properties": properties, "required": [name], "additionalProperties": False}
            choices.append(entry)
        return {"anyOf": choices}

    def _mapping(self, key: Any, value: Any) -> dict[str, Any]:
        named = self.yaml and dataclasses.is_dataclass(value) and "name" in get_type_hints(value)
        below = self._defined(value, named=True) if named else self.of(value)
        made: dict[str, Any] = {"type": "object", "additionalProperties": below}
        if self.yaml and (pattern := self.of(key).get("pattern")):
            made["propertyNames"] = {"pattern": pattern}
        return made

    def _defined(self, shape: Any, *, named: bool = False) -> dict[str, Any]:
        """Return a reference to the shape; one that is `named` by the key it stands under has no field for it."""
        name = shape.__name__
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self.struct(shape, ("name",) if named else ())
        return {"$ref": f"#/definitions/{name}"}

    def _plain(self, kind: Any) -> Any:
        if kind in (str, Path):
            return list(_TEXT) if self.yaml else "string"
        names = {int: "integer", float: "number", bool: "boolean", type(None): "null", object: list(_ANY)}
        return names[kind]


_ANY = ("string", "number", "boolean", "object", "array", "null")


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _holds_many(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple, Sequence, dict, Mapping)


def _choices(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return list(schema["anyOf"]) if set(schema) == {"anyOf"} else [schema]


def _described(schema: dict[str, Any], about: str | None) -> dict[str, Any]:
    if not about:
        return schema
    limits = schema.get("description")
    # In draft 7 nothing beside a $ref counts.
    whole = {"allOf": [schema]} if "$ref" in schema else schema
    return {**whole, "description": f"{about} {limits}" if limits else about}


def _about(shape: Any) -> str | None:
    docstring = vars(shape).get("__doc__")
    # A dataclass without a docstring gets its signature for one.
    return " ".join(docstring.split()) if docstring and not docstring.startswith(f"{shape.__name__}(") else None


def _docstrings(shape: Any) -> dict[str, str]:
    """Return the docstring below each field of a class and of its base classes."""
    docstrings: dict[str, str] = {}
    for base in reversed([shape, *getattr(shape, "__orig_bases__", ()), *shape.__mro__]):
        docstrings |= _of_module(getattr(base, "__module__", "")).get(getattr(base, "__name__", ""), {})
    return docstrings


@functools.cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    module = sys.modules.get(name)
    if module is None or not name.startswith("kmlab"):
        return {}
    classes = (node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef))
    return {node.name: dict(_fields(node.body)) for node in classes}


def _fields(body: Sequence[ast.stmt]) -> Iterable[tuple[str, str]]:
    for field, below in itertools.pairwise(body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            yield field.target.id, " ".join(below.value.value.split())
