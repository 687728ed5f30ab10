"""The functions that a report names in its own words, beside its stacks."""

from __future__ import annotations

import re

from kmlab.kernel.crash.stack_trace import Frame

_MAX_NAMED = 8


class NamedFunctions:
    """The functions that a report names in its own words."""

    def __init__(self, first: Frame | None) -> None:
        self._frames = [first] if first else []
        self.working: Frame | None = None
        """The function of the work item that the worker was at."""

    def add(self, frame: Frame | None) -> None:
        """Take one that says less than those before it."""
        if frame and len(self._frames) < _MAX_NAMED:
            self._frames.append(frame)

    def put_first(self, frame: Frame | None) -> None:
        """Take one that says more than all others."""
        if frame:
            self._frames.insert(0, frame)

    def learn(self, text: str, of_interrupt: bool) -> None:
        """Learn from a line that names the work of a worker, or who registered for an interrupt."""
        if self.working is None and text.startswith(_WORKERS):
            self.working = _frame(_WORKING.search(text))
        if of_interrupt:
            self.add(_frame(_HANDLER.match(text)))

    def by_worth(self, of_work: bool) -> list[Frame]:
        """Return them, the best first. `of_work`: the report is about the work item alone."""
        if self.working is None:
            return self._frames
        return [self.working] if of_work else [*self._frames, self.working][:_MAX_NAMED]


def in_flight(text: str) -> Frame | None:
    """Return the first of the work items that a workqueue is at, if the line lists them."""
    return _frame(_IN_FLIGHT.search(text)) if "in-flight:" in text else None


def _frame(found: re.Match[str] | None) -> Frame | None:
    return Frame(found[1], None, None, found[2], reliable=True, exact=False) if found else None


_WORKERS = ("Workqueue: ", "     last function: ", "     preempt=")
_WORKING = re.compile(
    r"(?:Workqueue: \S{1,64}| {4,8}last function:|workfn=) ?([A-Za-z_][\w.]{0,127})(?: \[([\w-]{1,64})\])?"
    r"(?: \(.{0,64}\))?\s{0,4}$"
)
_IN_FLIGHT = re.compile(r"in-flight: ?(?:\d{1,9}(?:\(RESCUER\))?:)?([A-Za-z_][\w.]{0,127})(?: \[([\w-]{1,64})\])?")
_HANDLER = re.compile(r"\[<[0-9a-f]{8,16}>\] ([A-Za-z_][\w.]{0,127})(?: \[([\w-]{1,64})\])?(?: threaded .{0,150})?$")
"""Who had registered for an interrupt that nobody wanted (print_irq_handlers())."""
