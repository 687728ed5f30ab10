"""Bugs that a stock kernel lets pass are found in guests with debug kernels, each at its line; correct modules pass."""

from __future__ import annotations

import pytest

from kmlab.config.lab import load_lab
from tests.crashers import QUIET
from tests.debug.conftest import start
from tests.guest.conftest import LAB_YAML, Lab

FLAVOURS = ("debug", "kcsan", "kmsan")
FAULTS = [name for name, module in QUIET.modules.items() if module.source.name == "errors"]
"""An ordinary run of these passes."""
FOUND_BY_A_RUN = [name for name, module in QUIET.modules.items() if module.source.name not in ("errors", "devices")]
PLACES = {name: QUIET.marked_place(QUIET.modules[name]) for name in FAULTS}
CORRECT = [name for name, module in load_lab(LAB_YAML).modules.items() if module.expect.outcome == ("pass",)]


@pytest.fixture(scope="session")
def started(quiet: Lab) -> dict[str, bool]:
    """The guests that have been started."""
    return {}


@pytest.mark.parametrize("name", FOUND_BY_A_RUN)
def test_a_quiet_bug_is_found_at_its_line(quiet: Lab, started: dict[str, bool], name: str) -> None:
    guest = (QUIET.modules[name].guests or ("debug",))[0]
    if not started.setdefault(guest, False):
        start(quiet, guest)
        started[guest] = True
    QUIET.check(quiet("run", name, "-g", guest, "--fresh", "--json", code=None).result)


@pytest.mark.parametrize("name", FAULTS)
def test_an_error_path_that_nobody_ran_is_found_by_torture(quiet: Lab, name: str) -> None:
    folder = str(QUIET.folder / QUIET.modules[name].source)
    words = ("torture", folder, "-g", "debug", "-p", f"what={name}", "--group", "faults", "--json")
    wrong = [case for case in quiet(*words, code=1).json["cases"] if not case["ok"]]
    assert wrong and all(case["failed_call"] for case in wrong)
    place = PLACES[name]
    if place and name != "device_kept_on_error":
        found = [(crash["function"], crash["file"], crash["line"]) for case in wrong for crash in case["crashes"]]
        assert (name, *place) in found


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_module_is_not_accused(quiet: Lab, name: str) -> None:
    folder = str(LAB_YAML.parent / load_lab(LAB_YAML).modules[name].source)
    result = quiet("run", folder, "-g", "debug", "--json", code=None).result
    assert (result["outcome"], result["crashes"]) == ("pass", [])
