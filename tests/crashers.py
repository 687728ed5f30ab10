"""The modules with bugs in tests/data: what each must come to, as lab.yaml and the mark in its source say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from kmlab.config.lab import Module, load_lab
from tests.places import TEST_DATA

BUILT = TEST_DATA / "ko" / "crashers"
"""The modules as they were when their logs were made, by source and kernel."""


class Corpus:
    """A lab of modules that each have one bug."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def file(self) -> Path:
        """The corpus's lab.yaml."""
        return self.folder / "lab.yaml"

    @cached_property
    def modules(self) -> Mapping[str, Module]:
        """The modules by their names."""
        return load_lab(self.file).modules

    def marked_place(self, module: Module) -> tuple[str, int] | None:
        """Return the file and the line that are marked as `/* HERE name */`; None if no one line is to blame."""
        names = {module.name, str(module.params.get("what", ""))}
        folder = self.folder / module.source
        for source in sorted(folder.rglob("*.[chS]")):
            for number, line in enumerate(source.read_text().splitlines(), 1):
                found = re.search(r"/\* HERE (\w+) \*/", line)
                if found and found[1] in names:
                    return str(source.relative_to(folder)), number
        return None

    def check(self, result: dict[str, Any]) -> None:
        """Check that a run has the right outcome, function, file and line, and one finding for the one bug."""
        module = self.modules[result["module"]]
        seen = {k: result[k] for k in ("outcome", "title", "reason", "unmet", "steps", "crashes", "artifacts")}
        message = json.dumps(seen, indent=1)
        assert result["ok"], message
        place = self.marked_place(module)
        if module.expect.function and place:
            assert result["crashes"], message
            first = result["crashes"][0]
            assert (first["function"], first["file"], first["line"]) == (module.expect.function, *place), message
            assert "0x" not in first["title"], message
        own = {path.stem.replace("-", "_") for path in (self.folder / module.source).rglob("*.[chS]")}
        assert len([c for c in result["crashes"] if c["module"] in own]) <= 1, f"one bug has one name: {message}"


CRASHERS = Corpus(TEST_DATA / "crashers")
"""Bugs that a stock kernel notices."""
QUIET = Corpus(TEST_DATA / "quiet")
"""Bugs that only a debug kernel notices."""
