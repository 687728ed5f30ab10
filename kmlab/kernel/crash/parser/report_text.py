"""The lines of one report, capped."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LINES = 300
MAX_TEXT = 32768


class ReportText:
    """The lines of a report. Those at its end that say nothing of it are left out."""

    def __init__(self, first: str) -> None:
        self.lines = [first]
        self._size = len(first)
        self._useful = 1

    def lead(self, before: Sequence[str]) -> None:
        """Put lines before the first."""
        self.lines[:0] = before
        self._useful = len(self.lines)
        self._size += sum(map(len, before))

    def add(self, text: str) -> None:
        """Take a line that may be part of the report."""
        if len(self.lines) < MAX_LINES and self._size + len(text) < MAX_TEXT:
            self.lines.append(text)
            self._size += len(text) + 1

    def keep(self) -> None:
        """Note that the last line is part of the report, and so all before it."""
        self._useful = len(self.lines)

    def __str__(self) -> str:
        return "\n".join(self.lines[: self._useful])
