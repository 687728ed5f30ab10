"""Measure the start of the program itself."""

from __future__ import annotations

import sys

from benchmarks.frame import Figure
from benchmarks.world import World

_TIMES = 5
"""The number of starts of which each measurement is the mean, because they are short."""


def show_help(world: World) -> float:
    return sum(world.run([sys.executable, "-m", "kmlab", "--help"])[0] for _ in range(_TIMES)) / _TIMES


def complete(world: World) -> float:
    """Measure what a shell runs when a user presses Tab after `kmlab r`."""
    variables = {"_KMLAB_COMPLETE": "complete_bash", "COMP_WORDS": "kmlab r", "COMP_CWORD": "1"}
    program = "from kmlab.cli.app import main; main()"
    argv = [sys.executable, "-c", program]
    return sum(world.run(argv, env=variables, accept=range(256))[0] for _ in range(_TIMES)) / _TIMES


def import_typer(world: World) -> float:
    return sum(world.run([sys.executable, "-c", "import typer"])[0] for _ in range(_TIMES)) / _TIMES


FIGURES = (
    Figure(
        name="kmlab --help",
        what="kmlab --help",
        companion="python -c 'import typer'",
        target=1.5,
        ours=show_help,
        theirs=import_typer,
    ),
    Figure(
        name="completion",
        what="completing `kmlab r`",
        companion="python -c 'import typer'",
        target=1.5,
        ours=complete,
        theirs=import_typer,
    ),
)
