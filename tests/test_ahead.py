"""What guests of one base share of a command's builds."""

from __future__ import annotations

import threading

import pytest

from kmlab.common.errors import LabError
from kmlab.run.guest_commands import Built
from kmlab.run.sandbox_build import Builds


def test_what_two_want_at_once_is_built_once() -> None:
    builds, begun, go_on = Builds(), threading.Event(), threading.Event()
    made: list[Built] = []
    found: list[Built] = []

    def make() -> Built:
        begun.set()
        assert go_on.wait(30)
        made.append(Built(True, "", "make"))
        return made[-1]

    threads = [threading.Thread(target=lambda: found.append(builds.built("hello", make))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    other = Built(False, "", "make")
    assert builds.built("other", lambda: other) is other
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1 and all(built is made[0] for built in found) and len(found) == 3


def test_what_could_not_be_built_is_tried_by_the_next() -> None:
    builds = Builds()

    def fail() -> Built:
        raise LabError("bubblewrap cannot make a sandbox here")

    with pytest.raises(LabError):
        builds.built("hello", fail)
    assert builds.built("hello", lambda: Built(True, "", "make")).ok
