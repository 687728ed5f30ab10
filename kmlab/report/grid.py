"""Arrange modules and kernels in a table: a cell for each run, with failures grouped by their fingerprint.

Turn results into a `Grid`, and that into lines for people and into JSON, without any I/O.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kmlab.kernel.build.api_changes import Cause, find_cause, parse_release
from kmlab.run.documents import GridPage
from kmlab.run.result import RunResult

Version = tuple[int, int]
_MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class Column:
    """One guest, which means one kernel."""

    guest: str
    kernel: str | None
    """None if no run reached the guest."""

    @property
    def version(self) -> Version | None:
        return parse_release(self.kernel) if self.kernel else None


@dataclass(frozen=True, slots=True)
class Group:
    """Runs with the same outcome for the same reason."""

    fingerprint: str
    outcome: str
    modules: tuple[str, ...]
    guests: tuple[str, ...]
    ok: bool
    """Whether all of them are as expected."""
    sentence: str


@dataclass(frozen=True, slots=True)
class Grid:
    """The table of all runs."""

    columns: tuple[Column, ...]
    modules: tuple[str, ...]
    cells: Mapping[tuple[str, str], RunResult]
    """Runs by module and guest; not every module runs in every guest."""
    groups: tuple[Group, ...]
    """The runs that did not pass or were not expected, unexpected ones first."""

    def outcomes(self, module: str) -> set[str]:
        """Return all outcomes of a module."""
        return {result.outcome for (name, _), result in self.cells.items() if name == module}


def grid_of(results: Sequence[RunResult]) -> Grid:
    """Return the table of these results; columns and rows keep their order."""
    kernels: dict[str, str | None] = {}
    for result in results:
        kernels[result.guest] = kernels.get(result.guest) or result.kernel
    columns = tuple(Column(guest, kernel) for guest, kernel in kernels.items())
    cells = {(result.module, result.guest): result for result in results}
    return Grid(columns, tuple(dict.fromkeys(r.module for r in results)), cells, _groups(results, cells, columns))


def lines(grid: Grid) -> list[str]:
    """Return the table for people: modules down, kernels across; then counts, and a sentence for each group.

    A module with the same expected outcome on all kernels needs no sentence.
    """
    texts = {key: ("" if r.ok else "! ") + r.outcome for key, r in grid.cells.items()}
    suffix, short = _common_suffix([column.kernel for column in grid.columns if column.kernel])
    first = max(map(len, [*grid.modules, "module", suffix]), default=0)
    heads = [(c.guest, short.get(c.kernel, c.kernel) if c.kernel else "-") for c in grid.columns]
    widths = [
        max(len(guest), len(kernel), *(len(texts.get((module, guest), "-")) for module in grid.modules))
        for guest, kernel in heads
    ]
    rows = [["module", *(guest for guest, _ in heads)], [suffix, *(kernel for _, kernel in heads)]]
    rows += [[module, *(texts.get((module, guest), "-") for guest, _ in heads)] for module in grid.modules]
    page = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, [first, *widths], strict=True)) for row in rows]
    wrong = sum(not result.ok for result in grid.cells.values())
    page.append(f"{len(grid.cells) - wrong} as expected, {wrong} not" + (" (marked !)" if wrong else ""))
    for group in grid.groups:
        if not group.ok or any(len(grid.outcomes(module)) > 1 for module in group.modules):
            page.append(f"{'  ' if group.ok else '! '}{_listed(group.modules)}: {group.sentence}")
    return [line.rstrip() for line in page]


def document(grid: Grid) -> GridPage:
    """Return what `--json` adds to the results."""
    return {
        "columns": [{"guest": column.guest, "kernel": column.kernel} for column in grid.columns],
        "rows": [
            {
                "module": module,
                "cells": [
                    {"outcome": cell.outcome, "ok": cell.ok} if cell else None
                    for cell in (grid.cells.get((module, column.guest)) for column in grid.columns)
                ],
            }
            for module in grid.modules
        ],
        "groups": [
            {
                "fingerprint": group.fingerprint,
                "outcome": group.outcome,
                "modules": list(group.modules),
                "guests": list(group.guests),
                "ok": group.ok,
                "sentence": group.sentence,
            }
            for group in grid.groups
        ],
    }


# --- groups --------------------------------------------------------------------------------------------------------


def _groups(
    results: Sequence[RunResult], cells: Mapping[tuple[str, str], RunResult], columns: Sequence[Column]
) -> tuple[Group, ...]:
    members_by_cause: dict[tuple[str, str], list[RunResult]] = {}
    for result in results:
        if result.outcome != "pass" or not result.ok:
            members_by_cause.setdefault((result.outcome, _fingerprint(result)), []).append(result)
    groups = [
        Group(
            fingerprint=fingerprint,
            outcome=outcome,
            modules=tuple(dict.fromkeys(r.module for r in members)),
            guests=tuple(c.guest for c in columns if any(r.guest == c.guest for r in members)),
            ok=all(r.ok for r in members),
            sentence=_sentence(members, cells, columns),
        )
        for (outcome, fingerprint), members in members_by_cause.items()
    ]
    return tuple(sorted(groups, key=lambda group: group.ok))


def _fingerprint(result: RunResult) -> str:
    """Return the same digest for the same failure on any kernel, and in any module if the kernel is the cause."""
    # Numbers differ from kernel to kernel: addresses, lines of headers, seconds, the release itself.
    about = re.sub(r"\S+", _without_number, _what(result))
    if result.unmet:
        return _digest(result.outcome, result.module, about)
    if result.crashes:
        return result.crashes[0].fingerprint
    cause = _cause(result)
    if cause is not None:
        return _digest("api", cause.version, cause.change.text, cause.kernel_has_it)
    if result.outcome == "error":
        return _digest("error", result.title)
    return _digest(result.outcome, result.module, result.failure or about)


def _without_number(word: re.Match[str]) -> str:
    # Two steps: one pattern for a word with a digit somewhere takes quadratic time on a long word without one.
    return "0" if re.search(r"\d", word[0]) else word[0]


def _sentence(
    members: Sequence[RunResult], cells: Mapping[tuple[str, str], RunResult], columns: Sequence[Column]
) -> str:
    first, modules = members[0], {result.module for result in members}
    tried = [c for c in columns if any((module, c.guest) in cells for module in modules)]
    bad = [c for c in tried if any(r.guest == c.guest for r in members)]
    good = [c for c in tried if c not in bad]
    if first.outcome != "build-failed":
        return f"{first.outcome} {_where(bad, good)}: {_what(first)}"
    built = [c for c in good if all(_built(cells.get((module, c.guest))) for module in modules)]
    cause = _cause(first)
    if cause is not None:
        version, text = cause.version, cause.change.text
        other_side = [c for c in good if c.version and (c.version >= cause.change.since) != cause.kernel_has_it]
        holds = all(c in built for c in other_side)
        if cause.kernel_has_it:
            return f"builds before {version} only: since then {text}" if holds else f"no build since {version}: {text}"
        return f"builds from {version} on: {text}" if holds else f"no build before {version}: {text}"
    span = _span(bad, good)
    if span is not None and good and built == good:
        edge = max if span.startswith("from") else min
        other = _text(edge(c.version for c in good if c.version))
        builds = f"up to {other}, not {span}" if edge is max else f"from {other} on, not {span}"
        return f"builds {builds}: {_what(first)}"
    return f"no build {_where(bad, good)}: {_what(first)}"


def _built(result: RunResult | None) -> bool:
    return result is None or result.outcome not in ("build-failed", "skipped", "error")


def _where(bad: Sequence[Column], good: Sequence[Column]) -> str:
    """Return on which kernels it fails, and on which it does not."""
    if not good and len(bad) > 1:
        return "on every kernel"
    return _span(bad, good) or f"on {' and '.join(filter(None, [', '.join(_names(bad)[:-1]), _names(bad)[-1]]))}"


def _span(bad: Sequence[Column], good: Sequence[Column]) -> str | None:
    """Return `from 6.12 on` or `up to 6.1`, if the versions separate these kernels from the others."""
    wrong, right = [c.version for c in bad], [c.version for c in good]
    low, high = [v for v in wrong if v], [v for v in right if v]
    if not high or len(low) < len(wrong) or len(high) < len(right):
        return None
    if min(low) > max(high):
        return f"from {_text(min(low))} on"
    return f"up to {_text(max(low))}" if max(low) < min(high) else None


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _names(columns: Sequence[Column]) -> list[str]:
    return [column.guest for column in columns]


def _what(result: RunResult) -> str:
    """Return what is wrong, with its place, in one line."""
    if result.unmet:
        return "; ".join(result.unmet)
    error = next((d for d in result.diagnostics if d.severity == "error" and d.file), None)
    if result.outcome == "build-failed" and error is not None:
        return f"{error.file}:{error.line}: {error.message}"
    place = next((f" at {c.file}:{c.line}" for c in result.crashes if c.file), "")
    return f"{result.title or result.reason or result.outcome}{place}"


def _cause(result: RunResult) -> Cause | None:
    if result.outcome != "build-failed" or result.kernel is None:
        return None
    errors = ("\n".join((d.message, *d.notes)) for d in result.diagnostics if d.severity == "error")
    return next(filter(None, (find_cause(error, result.kernel) for error in errors)), None)


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "backslashreplace")).hexdigest()[:16]


# --- text ----------------------------------------------------------------------------------------------------------


def _common_suffix(releases: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the common end of all releases, such as …-cloud-amd64, and each release without it."""
    if len(set(releases)) < 2:
        return "", {}
    words = [release.split("-") for release in releases]
    count = 0
    while all(len(each) > count + 1 and each[-1 - count] == words[0][-1 - count] for each in words):
        count += 1
    if not count:
        return "", {}
    short = {release: "-".join(each[:-count]) for release, each in zip(releases, words, strict=True)}
    return "…-" + "-".join(words[0][-count:]), short


def _listed(modules: Sequence[str]) -> str:
    more = len(modules) - _MOST_NAMES
    return ", ".join(modules[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
