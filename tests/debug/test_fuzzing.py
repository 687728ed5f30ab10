"""An ioctl that is off by one is found by fuzzing in less than a minute, and becomes a C program of one call."""

from __future__ import annotations

from pathlib import Path

from tests.crashers import QUIET
from tests.debug.conftest import start
from tests.guest.conftest import Lab

NAME = "slot_beyond"
PLACE = ("slot_beyond", *(QUIET.marked_place(QUIET.modules[NAME]) or ()))


def test_an_ioctl_that_is_off_by_one_is_found_and_reduced_to_a_c_program(quiet: Lab) -> None:
    start(quiet, "debug")
    folder = str(QUIET.folder / QUIET.modules[NAME].source)
    words = ("torture", folder, "-g", "debug", "--case", "fuzz-1", "--json")
    (case,) = quiet(*words, code=1).json["cases"]
    assert PLACE in [(crash["function"], crash["file"], crash["line"]) for crash in case["crashes"]]
    assert case["seconds"] < 60
    program = Path(case["reproducer"]).read_text()
    assert "QUIET_SET" in program and "It went wrong in a fresh guest." in program
    assert program.count("step(") == 2, "one call is enough"
