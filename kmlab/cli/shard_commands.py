"""Commands about work that several machines share: merge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kmlab.cli.options.module_options import Github, Junit, ReportPaths
from kmlab.cli.options.shared_options import Debug, Json, LabFile, set_global_options

if TYPE_CHECKING:
    from kmlab.run.documents import RunDocument, RunKeys
    from kmlab.run.result import RunResult
    from kmlab.sharding.dealing import RowName
    from kmlab.sharding.merging import Merged

_ENDINGS = (".json", ".jsonl")


def merge(
    results: Annotated[
        list[Path],
        typer.Argument(help="Results of each machine, or folders with them: .json or .jsonl.", metavar="RESULTS"),
    ],
    report_paths: ReportPaths = None,
    junit: Junit = None,
    github: Github = False,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Put the results of several machines together.

    Print one table or one document, and end with one exit code.

    Rows that no machine has run are listed, and are failures of the lab.
    """
    set_global_options(json=json, debug=debug)
    from kmlab.cli.module_commands import exit_code, write_reports
    from kmlab.cli.output import render
    from kmlab.report import formats, grid
    from kmlab.sharding.merging import merge as merge_files
    from kmlab.sharding.stored_results import read_results, row_json

    files = formats.report_files(report_paths or [], junit)
    merged = merge_files([read_results(path, Path.cwd()) for path in _files(results)])
    shown = [*(run.result for run in merged.runs), *map(_not_run, merged.missing)]
    page = grid.grid_of(shown)
    keys: RunKeys = {"grid": grid.document(page), "missing": [row_json(row) for row in merged.missing]}
    document = _document(merged, keys)
    problems = write_reports(formats.Reports(files, document), shown, github=github, json=json)
    for note in merged.notes:
        render.note(note)
    if json:
        render.document(document)
    else:
        render.print_lines(grid.lines(page))
        render.print_lines(f"missing: {row.module} on {row.guest}" for row in merged.missing)
    for problem in problems:
        render.error(problem, as_json=False)
    raise typer.Exit(3 if problems else exit_code(shown))


def _files(places: list[Path]) -> Iterator[Path]:
    """Yield the files of results among the arguments, and in the folders among them."""
    from kmlab.common.errors import ConfigError
    from kmlab.common.events import printable

    for place in places:
        if not place.is_dir():
            yield place
            continue
        found = sorted(path for path in place.rglob("*") if path.suffix in _ENDINGS and path.is_file())
        if not found:
            raise ConfigError(f"{printable(str(place))}: no results in this folder", "put .json or .jsonl files there")
        yield from found


def _not_run(row: RowName) -> RunResult:
    """Return what stands in the table for a row without a result."""
    from kmlab.run.result import RunResult

    reason = "no machine has a result of it: run its shard again"
    return RunResult(
        module=row.module,
        source=row.module,
        guest=row.guest,
        outcome="error",
        title="not run",
        reason=reason,
        guest_survived=False,
    )


def _document(merged: Merged, keys: RunKeys) -> RunDocument:
    return {"schema": "kmlab.run/1", "results": [run.json for run in merged.runs], **keys}
