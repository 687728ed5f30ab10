"""Annotations that GitHub Actions shows on the lines of a module.

See https://docs.github.com/en/actions/writing-workflows/choosing-what-your-workflow-does/workflow-commands-for-github-actions.
"""

from __future__ import annotations

from collections.abc import Sequence

from kmlab.common.events import printable
from kmlab.report.finding import summary
from kmlab.run.result import RunResult


def github_annotations(results: Sequence[RunResult]) -> list[str]:
    """Return `::error file=…,line=…::…` for each run that was not as expected, on the module's own lines."""
    lines = []
    for result in results:
        if result.ok:
            continue
        place = next(((c.file, c.line) for c in result.crashes if c.file), None)
        place = place or next(((d.file, d.line) for d in result.diagnostics if d.file), None)
        where = f"file={_property(f'{result.source}/{place[0]}')},line={place[1] or 1}," if place else ""
        title = _property(f"{result.module} on {result.guest}")
        lines.append(f"::error {where}title={title}::{_data(printable(summary(result)))}")
    return lines


def _data(said: str) -> str:
    return said.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(said: str) -> str:
    return _data(said).replace(":", "%3A").replace(",", "%2C")
