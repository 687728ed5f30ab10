"""The modules in tests/data/crashers: what each must come to, as lab.yaml and the mark in its source say."""

from __future__ import annotations

import json
import re
from typing import Any

from kmlab.config.lab import Module, load_lab
from tests.places import TEST_DATA

FOLDER = TEST_DATA / "crashers"
BUILT = FOLDER.with_name("ko") / "crashers"
"""The modules as they were when their logs were made, by source and kernel."""
CASES = load_lab(FOLDER / "lab.yaml").modules


def marked_place(wanted: Module) -> tuple[str, int] | None:
    """File and line that are marked for it, as `/* HERE name */`; None where there is no one line to blame."""
    names = {wanted.name, str(wanted.params.get("what", ""))}
    folder = FOLDER / wanted.source
    for source in sorted(folder.rglob("*.[chS]")):
        for number, line in enumerate(source.read_text().splitlines(), 1):
            found = re.search(r"/\* HERE (\w+) \*/", line)
            if found and found[1] in names:
                return str(source.relative_to(folder)), number
    return None


def check(result: dict[str, Any]) -> None:
    """Whether a run's result has the right outcome, function, file and line, and one finding for the one bug."""
    wanted = CASES[result["module"]]
    told = {k: result[k] for k in ("outcome", "title", "reason", "unmet", "steps", "crashes", "artifacts")}
    said = json.dumps(told, indent=1)
    assert result["ok"], said
    place = marked_place(wanted)
    if wanted.expect.function and place:
        assert result["crashes"], said
        first = result["crashes"][0]
        assert (first["function"], first["file"], first["line"]) == (wanted.expect.function, *place), said
        assert "0x" not in first["title"], said
    own = {path.stem.replace("-", "_") for path in (FOLDER / wanted.source).rglob("*.[chS]")}
    assert len([c for c in result["crashes"] if c["module"] in own]) <= 1, f"one bug has one name: {said}"
