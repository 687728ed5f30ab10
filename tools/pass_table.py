"""Print the table of docs/debug-kernels.md: which guests find which bugs of tests/data/quiet.

    kmlab test --lab tests/data/quiet/lab.yaml -g stock -g kfence -g slub -g debug --json > runs.json
    .venv/bin/python tools/pass_table.py runs.json

Several files of `kmlab test --json` and of `kmlab torture --json` add up; a torture's column is `torture`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.crashers import QUIET

_LINE, _FOUND, _PASSED = "line", "found", "-"


def cell(module: str, crashes: list[dict[str, Any]], ok: bool) -> str:
    """Return how well a bug was found: with its line, without, or not at all."""
    if ok:
        return _PASSED
    place = QUIET.marked_place(QUIET.modules[module])
    exact = place is not None and any((crash["file"], crash["line"]) == place for crash in crashes)
    return _LINE if exact else _FOUND


def cells(document: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Return the cells of one document, by module and guest."""
    if document["schema"].startswith("kmlab.torture/"):
        wrong = [case for case in document["cases"] if not case["ok"]]
        crashes = [crash for case in wrong for crash in case["crashes"]]
        return {(document["module"], "torture"): cell(document["module"], crashes, not wrong)}
    return {
        (run["module"], run["guest"]): cell(run["module"], run["crashes"], run["outcome"] == "pass")
        for run in document["results"]
    }


def main(files: list[str]) -> None:
    table: dict[tuple[str, str], str] = {}
    for file in files:
        table |= cells(json.loads(Path(file).read_text(encoding="utf-8")))
    guests = list(dict.fromkeys(guest for _, guest in table))
    print("| bug | " + " | ".join(guests) + " |")
    print("|---|" + "---|" * len(guests))
    for module in QUIET.modules:
        print(f"| {module} | " + " | ".join(table.get((module, guest), "") for guest in guests) + " |")
    for guest in guests:
        column = [value for (_, name), value in table.items() if name == guest]
        found = sum(value != _PASSED for value in column)
        print(f"{guest}: {len(column)} run, {found} found, {column.count(_LINE)} with the line")


if __name__ == "__main__":
    main(sys.argv[1:])
