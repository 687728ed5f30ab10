"""Commands about files: validate a lab.yaml, print the JSON Schemas of files and documents. They touch nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kmlab.cli.options.shared_options import Debug, Json, LabFile, open_lab, set_global_options

if TYPE_CHECKING:
    from kmlab.run.documents import SchemaName


def schema(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of a schema: lab, image, recipe, run, …; default: list all.", metavar="NAME"),
    ] = None,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of a file or a document."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.report import json_schema as schemas

    if name is not None:
        render.schema(schemas.schema(name))
        return
    subjects = schemas.subjects()
    if json:
        listed: list[SchemaName] = [{"name": each.name, "about": f"{each.full}: {each.about}"} for each in subjects]
        render.document({"schema": "kmlab.schemas/1", "schemas": listed})
        return
    render.print_lines(f"{each.name:<20} {each.full:<28} {each.about}" for each in subjects)


def validate(lab: LabFile = None, json: Json = False, debug: Debug = False) -> None:
    """Check lab.yaml, and start nothing.

    This checks its keys and values, images, recipes, and the folders of its modules.
    """
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.run.selection import find_problems

    opened = open_lab(lab)
    problems = find_problems(opened)
    if json:
        render.document(
            {
                "schema": "kmlab.validate/1",
                "lab": str(opened.path),
                "guests": list(opened.guests),
                "modules": list(opened.modules),
                "problems": [{"message": problem.message, "hint": problem.hint} for problem in problems],
            }
        )
    for problem in problems:
        render.error(problem, as_json=False)
    if problems:
        raise typer.Exit(2)
    if not json:
        render.print_line(
            f"{opened.file}: correct: guests {', '.join(opened.guests)}; modules {', '.join(opened.modules) or 'none'}"
        )


def cache_key(lab: LabFile = None, json: Json = False, debug: Debug = False) -> None:
    """Print a key for a CI server's cache of this lab. It is another one if the lab needs other images or bases."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.provision import cache

    opened = open_lab(lab)
    key, places = cache.cache_key(opened), [str(path) for path in cache.cached_paths()]
    if json:
        render.document({"schema": "kmlab.cache-key/1", "key": key, "paths": places})
    else:
        render.print_line(key)
