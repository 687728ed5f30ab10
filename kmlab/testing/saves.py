"""Saves in a folder, without a person who saves; stands in for host/saves.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class FakeSaves:
    """Saves as a test has them: each wait is the next of `then`, and after the last one comes ^C."""

    def __init__(self, *then: Callable[[], object]) -> None:
        self.then = list(then)
        self.news = False
        self.watched: list[Path] = []

    def point(self, folder: Path, file: Path) -> None:
        if self.watched[-1:] != [folder]:
            self.watched.append(folder)

    def forget(self) -> None:
        self.news = False

    def wait(self) -> None:
        if not self.then:
            raise KeyboardInterrupt
        self.then.pop(0)()
        self.news = True
