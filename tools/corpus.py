"""Adds the consoles of real runs to tests/data/oops: `.venv/bin/python tools/corpus.py PREFIX [.kmlab/runs]`.

Takes the newest run of each module that did what lab.yaml expects of it, so that what the header of a log claims
(outcome, guilty function) was said by the module's author before the log was there. tests/test_oops.py has the form.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kmlab.kernel.klog import parse_log
from kmlab.kernel.oops import find_crashes

CORPUS = Path(__file__).parents[1] / "tests" / "data" / "oops"
_LARGEST = 100_000


def main(prefix: str, runs: Path) -> None:
    newest: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in sorted(runs.iterdir()):
        record = folder / "result.json"
        if record.exists():
            (result,) = json.loads(record.read_text())["results"]
            newest[result["module"]] = (folder, result)
    for module, (folder, result) in sorted(newest.items()):
        console = (folder / "console.log").read_bytes() if result["ok"] else b""
        if not console or len(console) > _LARGEST or result["outcome"] == "build-failed":
            continue
        header = _header(module, result, console)
        if header is not None:
            (CORPUS / f"{prefix}-{module}.txt").write_bytes(header.encode() + console)


def _header(module: str, result: dict[str, Any], console: bytes) -> str | None:
    """What must be found; None where the console alone does not tell it, as of a hang that the kernel is silent on."""
    found = find_crashes(parse_log(console).records, frozenset({module}), booted=True)
    lines = [f"own: {module}", "booted: yes", f"count: {len(found)}"]
    if [c.title for c in found] != [c["title"] for c in result["crashes"]]:
        return None
    for number, crash in enumerate(found):
        lines += ["and:"] if number else []
        lines += [f"{key}: {getattr(crash, key) or 'none'}" for key in ("kind", "title", "function", "module")]
        lines.append(f"class: {crash.class_}")
    return "".join(f"# expect: {line}\n" for line in lines)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else ".kmlab/runs"))
