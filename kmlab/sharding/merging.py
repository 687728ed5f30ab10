"""Put the results of several machines together: each row once, and the rows that nobody has run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kmlab.common.events import printable
from kmlab.run.documents import Result
from kmlab.sharding.dealing import RowName
from kmlab.sharding.stored_results import StoredFile, StoredRun


class Merged(NamedTuple):
    """The results of a whole plan."""

    runs: tuple[StoredRun, ...]
    """Each row once, in the order of the plan."""
    missing: tuple[RowName, ...]
    """Rows of the plan without a result."""
    notes: tuple[str, ...]
    """Rows of which there were several results; a sentence each."""


def merge(files: Sequence[StoredFile]) -> Merged:
    """Return each row once. Of several results of a row, the last one counts that is not a failure of the lab.

    A shard that ran again after its machine was lost may have results of the same rows.
    """
    chosen: dict[RowName, StoredRun] = {}
    several: dict[RowName, int] = {}
    seen: dict[RowName, list[Result]] = {}
    for run in (run for file in files for run in file.runs):
        if run.json in seen.setdefault(run.row, []):
            continue  # the same result in a second file, such as the .jsonl beside the .json
        seen[run.row].append(run.json)
        several[run.row] = several.get(run.row, 0) + 1
        before = chosen.get(run.row)
        if before is None or run.result.outcome != "error" or before.result.outcome == "error":
            chosen[run.row] = run
    planned = dict.fromkeys(row for file in files for row in file.planned)
    order = dict.fromkeys([*planned, *chosen])
    return Merged(
        tuple(chosen[row] for row in order if row in chosen),
        tuple(row for row in planned if row not in chosen),
        tuple(
            printable(f"{row.module} on {row.guest}: {count} results, the one of {chosen[row].file} counts")
            for row, count in several.items()
            if count > 1
        ),
    )
