"""What else a debug guest can do: KUnit, coverage, and a torture of a correct module."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.debug.conftest import start
from tests.guest.conftest import LAB_YAML, Lab

EXAMPLES = LAB_YAML.parent / "examples"


@pytest.fixture(scope="module")
def debug(quiet: Lab) -> Lab:
    start(quiet, "debug")
    return quiet


def test_kunit_s_cases_are_results(debug: Lab) -> None:
    result = debug("run", str(EXAMPLES / "kunit"), "-g", "debug", "--fresh", "--json").result
    statuses = {case["name"]: case["status"] for case in result["tests"]["cases"]}
    assert statuses == {
        "larva_begins_small": "passed",
        "larva_doubles_with_each_moult": "passed",
        "larva_moults_five_times": "passed",
        "larva_flies": "skipped",
    }


def test_a_kunit_expectation_that_fails_has_its_line(debug: Lab) -> None:
    words = ("run", str(EXAMPLES / "kunit"), "-g", "debug", "-p", "broken=1", "--fresh", "--json")
    result = debug(*words, code=1).result
    assert result["outcome"] == "test-failed"
    (failed,) = [case for case in result["tests"]["cases"] if case["status"] == "failed"]
    assert (failed["name"], failed["file"]) == ("larva_doubles_with_each_moult", "larva_test.c")


def test_coverage_tells_which_lines_ran(debug: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out.info"
    debug("run", str(EXAMPLES / "params"), "-g", "debug", "--fresh", "--coverage", str(out), "--json")
    counts = dict(line[3:].split(",")[:2] for line in out.read_text().splitlines() if line.startswith("DA:"))
    assert (counts and "0" in counts.values()) or set(counts.values()) >= {"1"}
    assert f"SF:{EXAMPLES / 'params' / 'params.c'}" in out.read_text()


@pytest.mark.parametrize("name", ["startstop", "params"])
def test_a_correct_module_survives_the_torture(debug: Lab, name: str) -> None:
    document = debug("torture", str(EXAMPLES / name), "-g", "debug", "--repeat", "3", "--json").json
    assert [case for case in document["cases"] if not case["ok"]] == []
    groups = {case["group"] for case in document["cases"] if case["outcome"] == "pass"}
    assert groups >= {"plain", "cycle", "faults", "memory", "unload", "parallel", "signals", "cpus"}
