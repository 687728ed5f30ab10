"""`python -m benchmarks [FIGURE…]`: measure, print ratios, and store the numbers as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from benchmarks import companions, frame
from benchmarks.world import SCRATCH, opened


def main() -> int:
    figures = frame.all_figures()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Performance as ratios.")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="only those whose names have this in them")
    parser.add_argument("--list", action="store_true", help="list the figures, and measure nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: a new file in .kmlab/bench")
    arguments = parser.parse_args()
    usual = [f for f in figures if not f.only_named or arguments.list]
    chosen = [f for f in figures if any(word in f.name for word in arguments.figures)] if arguments.figures else usual
    if arguments.list:
        print("\n".join(_described(f) for f in chosen))
        return 0
    if not chosen:
        print(f"no such figure; choose from: {', '.join(f.name for f in figures)}", file=sys.stderr)
        return 2
    before = os.getloadavg()
    with opened() as world:
        measured = frame.measure(chosen, world, arguments.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    versions = companions.versions()
    document = frame.document(measured, (before, os.getloadavg()), versions)
    target = arguments.json or SCRATCH / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join(frame.table(measured)))
    for name, version in versions.items():
        print(f"measured against {name} {version}")
    print(f"all numbers: {target}")
    return 0


def _described(figure: frame.Figure) -> str:
    named = " (only if it is named)" if figure.only_named else ""
    return f"{figure.name}: {figure.what}, against {figure.companion}{named}"


if __name__ == "__main__":
    sys.exit(main())
