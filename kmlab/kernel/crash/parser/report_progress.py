"""How far a kernel's report has come: what was read of it, whether it has ended, what followed it."""

from __future__ import annotations

from kmlab.kernel.log.records import Record

UNRELATED = 4
"""Lines about other things that are enough to tell that a first line was only a module's own words."""


class Progress:
    """How far a report has come."""

    def __init__(self, record: Record, seen: int, fatal: bool) -> None:
        self.time = self.last_time = record.time
        self.last_seen = seen
        self.fatal = fatal
        """The kernel panics over it."""
        self.ended = False
        """No frame that follows is part of it."""
        self.done = False
        """Nothing that follows is part of it."""
        self.whole = False
        """Its last line was read."""
        self.lost = False
        """Lines of it are missing."""
        self.passed = False
        """The kernel went on to other things after it."""
        self.quiet = 0
        """Lines about other things since the last of its own."""
        self.read_on = 0
        """Lines behind the first that are part of it."""

    def hear(self, record: Record, seen: int) -> None:
        """Note when the last line came."""
        self.last_time, self.last_seen = record.time, seen

    def advance(self) -> None:
        """Note that a line was part of it."""
        self.quiet = 0
        self.read_on += 1

    def pass_by(self, patience: int | None = None) -> None:
        """Note that somebody spoke of other things; it is over when that was said more than `patience` times."""
        self.quiet += 1
        if patience is not None and self.quiet > patience:
            self.done = self.passed = True

    def panic(self, ended: bool) -> None:
        """Note that the kernel panics over it. Its trace is still to come unless it has `ended`."""
        self.ended = ended
        self.fatal, self.done = True, False

    def end(self) -> None:
        """Note that its last line was read."""
        self.ended = self.whole = self.done = True

    def reads_end(self, text: str) -> bool:
        """Whether the line is one that ends a report."""
        if text.startswith("---[ end "):
            self.ended = self.whole = True
            # An oops that was already fatal goes on to the end of its panic.
            self.done = not self.fatal or "panic" in text
            return True
        if self.fatal and text.startswith("Rebooting in "):
            self.whole = self.done = True
            return True
        return False
