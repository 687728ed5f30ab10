"""What guests of one base share of a command's builds."""

from __future__ import annotations

import threading

import pytest

from kmlab.common.errors import LabError
from kmlab.run.build.products import BuildResult
from kmlab.run.build.sandbox_build import BuildCache


def test_what_two_want_at_once_is_built_once() -> None:
    builds, begun, check_cancelled = BuildCache(), threading.Event(), threading.Event()
    made: list[BuildResult] = []
    found: list[BuildResult] = []

    def make() -> BuildResult:
        begun.set()
        assert check_cancelled.wait(30)
        made.append(BuildResult(True, "", "make"))
        return made[-1]

    threads = [threading.Thread(target=lambda: found.append(builds.get_or_build("hello", make))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    other = BuildResult(False, "", "make")
    assert builds.get_or_build("other", lambda: other) is other
    check_cancelled.set()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1 and all(built is made[0] for built in found) and len(found) == 3


def test_what_could_not_be_built_is_tried_by_the_next() -> None:
    builds = BuildCache()

    def fail() -> BuildResult:
        raise LabError("bubblewrap cannot make a sandbox here")

    with pytest.raises(LabError):
        builds.get_or_build("hello", fail)
    assert builds.get_or_build("hello", lambda: BuildResult(True, "", "make")).ok
