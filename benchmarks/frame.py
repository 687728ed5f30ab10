"""Define figures, measure them, and show the results.

Absolute times depend on the machine and its other load, so each figure has a companion. In each
round every figure and every companion is measured once, one after the other, under the same load.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks import figures
from benchmarks.world import World

Measure = Callable[[World], float]
"""Measures once; returns the seconds, or the other unit that is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured thing, and the companion that it is compared with."""

    name: str
    what: str
    companion: str
    target: float
    ours: Measure
    theirs: Measure
    kind: Literal["ratio", "difference"] = "ratio"
    """ratio: ours / theirs; difference: ours - theirs, in seconds."""
    rounds: int | None = None
    """The number of rounds: fewer than usual, because one takes long."""
    only_named: bool = False
    """Measure it only if it is named: it needs something that takes very long to make."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure with the measurements of each round."""

    figure: Figure
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def rounds(self) -> list[float]:
        """Return the ratio, or the difference, of each round."""
        return [self._compare(a, b) for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def value(self) -> float:
        """Return the ratio, or the difference, of the medians."""
        return self._compare(statistics.median(self.ours), statistics.median(self.theirs))

    @property
    def reached(self) -> bool:
        return self.value <= self.figure.target

    def _compare(self, ours: float, theirs: float) -> float:
        return ours / theirs if self.figure.kind == "ratio" else ours - theirs

    def to_json(self) -> dict[str, Any]:
        figure = self.figure
        return {
            "name": figure.name,
            "what": figure.what,
            "companion": figure.companion,
            "kind": figure.kind,
            "target": figure.target,
            "value": round(self.value, 4),
            "spread": [round(min(self.rounds), 4), round(max(self.rounds), 4)],
            "reached": self.reached,
            "ours": [round(x, 4) for x in self.ours],
            "theirs": [round(x, 4) for x in self.theirs],
        }


def all_figures() -> list[Figure]:
    """Return the figures of every file in figures/, in the order of the files' names."""
    collected: list[Figure] = []
    for module in sorted(pkgutil.iter_modules(figures.__path__), key=lambda m: m.name):
        collected += importlib.import_module(f"{figures.__name__}.{module.name}").FIGURES
    return collected


def measure(chosen: Sequence[Figure], world: World, rounds: int, say: Callable[[str], None]) -> list[Measured]:
    """Measure all figures, round by round; measure what several of them need once a round."""
    measured = [Measured(figure) for figure in chosen]
    for number in range(rounds):
        values: dict[Measure, float] = {}
        for each in measured:
            if number >= (each.figure.rounds or rounds):
                continue
            for which, what in (("ours", each.figure.ours), ("theirs", each.figure.theirs)):
                if what not in values:
                    say(f"round {number + 1}: {each.figure.name}: {which}")
                    values[what] = what(world)
            each.ours.append(values[each.figure.ours])
            each.theirs.append(values[each.figure.theirs])
    return measured


def table(measured: Iterable[Measured]) -> list[str]:
    """Return the table for people: medians, their ratio, the spread of the rounds, and whether the goal is reached."""
    rows = [("figure", "ours", "companion", "", "value", "spread", "to reach", "")]
    for each in measured:
        sign = "×" if each.figure.kind == "ratio" else "s"
        rows.append(
            (
                each.figure.name,
                f"{statistics.median(each.ours):.3f}",
                f"{statistics.median(each.theirs):.3f}",
                each.figure.companion,
                f"{each.value:.2f} {sign}",
                f"{min(each.rounds):.2f}–{max(each.rounds):.2f}",
                f"≤ {each.figure.target:g} {sign}",
                "ok" if each.reached else "NOT REACHED",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def document(
    measured: Sequence[Measured], load: Sequence[tuple[float, float, float]], versions: Mapping[str, str]
) -> dict[str, Any]:
    """Return all measurements, with the machine and the versions of the companions."""
    return {
        "schema": "kmlab.bench/1",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load_before": load[0],
            "load_after": load[1],
        },
        "companions": dict(versions),
        "figures": [each.to_json() for each in measured],
    }
