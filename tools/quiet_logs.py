"""Add the logs of runs of tests/data/quiet to tests/data/oops, each with what was found in it as its header.

    kmlab test --lab tests/data/quiet/lab.yaml -g debug --json > runs.json
    .venv/bin/python tools/quiet_logs.py runs.json

Only runs that ended as expected, with their own finding in the kernel's log, are added.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kmlab.kernel.crash.parser.scanner import Scanner
from kmlab.kernel.log.records import parse_log
from tests.crashers import QUIET
from tests.places import TEST_DATA

_FIELDS = ("kind", "class_", "title", "function", "module", "task")


def header(log: bytes, own: str) -> list[str]:
    """Return the lines that describe the findings in a log."""
    scanner = Scanner(frozenset({own}), booted=True)
    scanner.feed(parse_log(log).records)
    scanner.close(True)
    lines = [f"# expect: own: {own}", "# expect: booted: yes"]
    for number, crash in enumerate(scanner.crashes):
        lines += ["# expect: and:"] if number else []
        lines += [f"# expect: {field.rstrip('_')}: {getattr(crash, field) or 'none'}" for field in _FIELDS]
        lines.append(f"# expect: truncated: {'yes' if crash.truncated else 'no'}")
    return lines if scanner.crashes else []


def add(run: dict[str, Any]) -> str | None:
    """Add the log of one run; return the file's name, None if there is nothing to add."""
    module = QUIET.modules[run["module"]]
    log = (Path(run["artifacts"]["directory"]) / run["artifacts"]["kernel_log"]).read_bytes()
    lines = header(log, f"quiet_{module.source.name}")
    if not run["ok"] or not run["crashes"] or not lines:
        return None
    series = ".".join(run["kernel"].split(".")[:2])
    path = TEST_DATA / "oops" / f"quiet-{module.name.replace('_', '-')}-{series}.txt"
    path.write_bytes("\n".join(lines).encode() + b"\n" + log)
    return path.name


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["results"]:
        print(add(each) or f"{each['module']}: not added")
