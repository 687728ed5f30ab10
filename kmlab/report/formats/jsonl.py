"""Write a report as JSON Lines (https://jsonlines.org): a kmlab.run/1 document for each run, as results arrive."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kmlab.run.result import RunResult, document


def text(results: Sequence[RunResult]) -> str:
    """Return all lines."""
    return "".join(map(line, results))


def line(result: RunResult) -> str:
    """Return the line of one run."""
    return json.dumps(document([result])) + "\n"
