"""Every write on the host may fail: one clear error, nothing half-made, and the next command works."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.errors import KmlabError
from kmlab.common.events import silent
from kmlab.config.lab import Lab
from kmlab.provision import lifecycle
from kmlab.run import run
from kmlab.testing import World
from kmlab.testing.failing_writes import FailingWrites
from tests.story import Go

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)


def command(go: Go) -> str | None:
    """Start a guest and run a module in it; return the outcome, or None if the command failed with its one error."""
    try:
        return go(options=run.Options(fresh=True)).outcome
    except KmlabError as error:
        assert "\n" not in error.message
        return None


def count(go: Go, xdg: Path) -> int:
    """Return how many writes a command in an empty home makes."""
    with FailingWrites(xdg, -1, 0) as writes:
        assert command(go) == "pass"
    return writes.count


def check(number: int, error: int, go: Go, world: World, lab: Lab, xdg: Path) -> None:
    with FailingWrites(xdg, number, error) as writes:
        outcome = command(go)
    # A write that only helps, such as a record of what was checked, may fail without harm.
    assert outcome in (None, "error", "pass"), writes.failed
    assert command(go) == "pass", f"the command after one in which this failed: {writes.failed}"
    lifecycle.destroy_lab(world.host, lab, [], all_state=False, report=silent)
    assert [path.name for path in paths.work().glob("*") if path.is_dir()] == [], writes.failed
    assert not lifecycle.lab_files(lab).root.exists(), writes.failed
    assert [m for m in world.machines.values() if m.runs] == []


@pytest.mark.parametrize("seed", range(6))
def test_any_write_of_a_first_command_may_fail(seed: int, go: Go, world: World, lab: Lab, xdg: Path) -> None:
    chance = random.Random(seed)
    number = count(go, xdg)
    assert number > 20
    lifecycle.destroy_lab(world.host, lab, [], all_state=True, report=silent)
    check(chance.randrange(number), chance.choice(ERRORS), go, world, lab, xdg)


@pytest.mark.parametrize("seed", range(6))
def test_any_write_of_a_later_command_may_fail(seed: int, go: Go, world: World, lab: Lab, xdg: Path) -> None:
    chance = random.Random(seed)
    assert command(go) == "pass"
    check(chance.randrange(count(go, xdg)), chance.choice(ERRORS), go, world, lab, xdg)
