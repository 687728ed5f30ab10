"""Read which lines of a module ran, from what gcov(1) prints as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

LineCounts = Mapping[str, Mapping[int, int]]
"""How often each line of each file ran; the files' paths are relative to the module's folder."""

GCOV_VARIABLES = {"GCOV_PROFILE": "y"}
"""The variables of make that let the compiler count (Documentation/dev-tools/gcov.rst)."""
READ_GCOV = (
    "cd {folder} && data=/sys/kernel/debug/gcov$(pwd -P) && test -d $data || exit 3; work=$(mktemp -d); "
    "(cd $data && find . -name '*.gcda') | while read -r file; do "
    'mkdir -p "$work/$(dirname "$file")"; cat "$data/$file" > "$work/$file"; '
    'cp "${{file%.gcda}}.gcno" "$work/$(dirname "$file")/"; '
    'gcov --json-format --stdout "$work/$file"; done; rm -rf $work'
)
"""A line for the guest's shell: prints a JSON document for each object file of the module's. Ends with 3 if the kernel
has counted nothing for this folder."""
_LARGEST_LINE = 1 << 24


def parse_line_counts(text: str, folder: PurePosixPath) -> dict[str, dict[int, int]]:
    """Return the counts of the files in that folder. What the guest prints besides is passed over."""
    counts: dict[str, dict[int, int]] = {}
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            continue
        for file, numbers in _files(document, folder):
            _add(counts.setdefault(file, {}), numbers)
    return counts


def add_up(all_counts: Iterable[LineCounts]) -> dict[str, dict[int, int]]:
    """Return the sums of several runs."""
    total: dict[str, dict[int, int]] = {}
    for counts in all_counts:
        for file, numbers in counts.items():
            _add(total.setdefault(file, {}), numbers.items())
    return total


def _add(total: dict[int, int], numbers: Iterable[tuple[int, int]]) -> None:
    for number, count in numbers:
        total[number] = total.get(number, 0) + count


def _files(document: Any, folder: PurePosixPath) -> Iterable[tuple[str, list[tuple[int, int]]]]:
    if not isinstance(document, dict) or not isinstance(document.get("files"), list):
        return
    for file in document["files"]:
        name, lines = (file.get("file"), file.get("lines")) if isinstance(file, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(lines, list):
            continue
        path = folder / name
        if path.is_relative_to(folder) and ".." not in path.parts:
            yield str(path.relative_to(folder)), list(_numbers(lines))


def _numbers(lines: list[Any]) -> Iterable[tuple[int, int]]:
    for line in lines:
        if isinstance(line, dict):
            number, count = line.get("line_number"), line.get("count")
            if type(number) is int and type(count) is int and 0 < number < _LARGEST_LINE and count >= 0:
                yield number, count
