"""Every example of the repository, as `kmlab run` judges it: what lab.yaml expects is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kmlab.lab import load_lab
from tests.guest.conftest import LAB_YAML, Lab

EXAMPLES = load_lab(LAB_YAML).modules
REASONS = {
    "in_use": r"process \d+ \(sleep 600\) has /dev/in_use open: end it in the guest \(kill \d+\)",
    "no_exit": r"no exit function",
    "firmware_missing": r"the firmware file kmlab/no-such-firmware\.bin",
    "init_fails": r"returned -ENODEV",
    "unknown_symbol": r"needs absent_greet\(\)",
}
"""What some of them are told, beyond that they fail."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_what_it_is_there_to_show(repository: Lab, name: str) -> None:
    answer = repository("run", str(LAB_YAML.parent / EXAMPLES[name].source), "--json", code=None)
    result = answer.result
    told = {k: result[k] for k in ("outcome", "expected", "title", "reason", "unmet", "steps")}
    assert result["ok"], json.dumps(told, indent=1) + answer.err
    assert answer.code == 0
    assert re.search(REASONS.get(name, ""), result["reason"] or ""), result["reason"]
    folder = Path(result["artifacts"]["directory"])
    assert json.loads((folder / "result.json").read_text())["results"][0]["outcome"] == result["outcome"]
    for crash in result["crashes"]:
        assert "0x" not in crash["title"]
        if EXAMPLES[name].expect.function and crash["module"] == name:
            assert crash["file"] == f"{name}.c"
            assert crash["line"] > 1
