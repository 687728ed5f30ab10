"""What the program prints with `--json` is what its schemas say: no key is missing, and none is one too many."""

from __future__ import annotations

import functools
import json
from typing import Any

import jsonschema

from kmlab.report import json_schema


def check(printed: str) -> None:
    """Compare each document in a command's output with the schema that it names."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(printed.rstrip()):
        document, at = decoder.raw_decode(printed, at)
        at += len(printed[at:]) - len(printed[at:].lstrip())
        if "$schema" in document:
            jsonschema.Draft7Validator.check_schema(document)
        else:
            found = [
                f"{error.json_path}: {error.message}" for error in validator(document["schema"]).iter_errors(document)
            ]
            assert found == []


@functools.cache
def validator(name: str) -> jsonschema.Draft7Validator:
    """The validator of a document, which refuses keys that its schema does not have."""
    return jsonschema.Draft7Validator(closed(json_schema.schema(name)))


def closed(value: Any) -> Any:
    """A schema that takes no other keys. Readers of version 1 must pass over them; this version prints none."""
    if isinstance(value, list):
        return [closed(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    made = {key: closed(inner) for key, inner in value.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made
