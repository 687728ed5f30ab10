"""Every example of the repository, as `kmlab run` judges it: what lab.yaml expects is what happens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmlab.config.lab import load_lab
from tests.guest.conftest import FIRST_START, LAB_YAML, Answer, Lab, to_be_run

EXAMPLES = load_lab(LAB_YAML).modules
REASONS = {
    "in_use": r"process \d+ \(sleep 600\) has /dev/in_use open: end it in the guest \(kill \d+\)",
    "no_exit": r"no exit function",
    "firmware_missing": r"the firmware file kmlab/no-such-firmware\.bin",
    "init_fails": r"returned -ENODEV",
    "unknown_symbol": r"needs absent_greet\(\)",
}
"""What the verdict of some of them says, beyond that they fail."""
PATIENT = ("irq_off_loop", "mutex_deadlock", "abba_deadlock", "exit_hang")
"""They end at the upper rungs of the ladder: till then they hang in a guest of their own, while others are judged."""
Aside = Callable[[], Answer]


@pytest.fixture(scope="module", autouse=True)
def aside(
    base: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Aside | None]:
    """Those of the patient ones that are to be tested, in one command."""
    wanted = [name for name in PATIENT if to_be_run(request, f"test_an_example_of_patience_does_so_too[{name}]")]
    if not wanted:
        yield None
        return
    lab = Lab(tmp_path_factory.mktemp("aside") / "lab.yaml", environment)
    text = LAB_YAML.read_text().replace("name: kmlab\n", "name: aside\n", 1)
    lab.write(text.replace("source: examples/", f"source: {LAB_YAML.parent}/examples/"))
    with lab.beside("test", *(str(LAB_YAML.parent / EXAMPLES[name].source) for name in wanted), "--json") as ended:
        yield ended


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in PATIENT])
def test_an_example_does_what_it_is_there_to_show(repository: Lab, name: str) -> None:
    # The first of a guest with another kernel boots its image once more.
    source = str(LAB_YAML.parent / EXAMPLES[name].source)
    answer = repository("run", source, "--json", code=None, timeout=FIRST_START if EXAMPLES[name].guests else 600.0)
    as_expected(name, answer.result, answer.err)
    assert answer.code == 0


@pytest.mark.parametrize("name", PATIENT)
def test_an_example_of_patience_does_so_too(aside: Aside, name: str) -> None:
    answer = aside()
    (result,) = (result for result in answer.json["results"] if result["module"] == name)
    as_expected(name, result, answer.err)
    assert answer.code == 0


def as_expected(name: str, result: dict[str, Any], said: str) -> None:
    told = {k: result[k] for k in ("outcome", "expected", "title", "reason", "unmet", "steps")}
    assert result["ok"], json.dumps(told, indent=1) + said
    assert re.search(REASONS.get(name, ""), result["reason"] or ""), result["reason"]
    folder = Path(result["artifacts"]["directory"])
    assert json.loads((folder / "result.json").read_text())["results"][0]["outcome"] == result["outcome"]
    for crash in result["crashes"]:
        assert "0x" not in crash["title"]
        if EXAMPLES[name].expect.function and crash["module"] == name:
            assert crash["file"] == f"{name}.c"
            assert crash["line"] > 1
