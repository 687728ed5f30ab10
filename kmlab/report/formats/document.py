"""Write a report as the JSON document of `kmlab run --json`: schema kmlab.run/1, with the table of runs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kmlab.report import grid
from kmlab.run.documents import RunDocument, RunKeys
from kmlab.run.result import RunResult, document


def text(results: Sequence[RunResult]) -> str:
    """Return the whole document."""
    return json.dumps({**document(results), "grid": grid.document(grid.grid_of(results))}, indent=1) + "\n"


def with_keys(results: Sequence[RunResult], keys: RunKeys | RunDocument) -> str:
    """Return the whole document, with keys that are not made from the results, or instead of those that are."""
    return json.dumps({**json.loads(text(results)), **keys}, indent=1) + "\n"
