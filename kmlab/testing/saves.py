"""Provide saves in a folder, without an editor; it replaces host/process/file_watch.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class FakeSaves:
    """Saves that a test defines: each wait runs the next of `then`; after the last one comes Ctrl-C."""

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
