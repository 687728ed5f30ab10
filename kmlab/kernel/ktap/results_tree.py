"""Hold the results of a test output as a tree, and collect its cases and what is wrong with it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from kmlab.kernel.ktap.case_results import Case, Status
from kmlab.kernel.ktap.expectations import find_expectations, find_reason
from kmlab.kernel.ktap.line_types import Line

LOG_LINES = 200
"""The last lines of a case that are kept."""
OUTERMOST = -1
"""The indent of the level around KUnit's suites, which a module's output does not begin with a line for."""


@dataclass(slots=True)
class Node:
    """One result, or a group without one."""

    name: str
    line: Line | None
    """None: its result line did not come."""
    begin: int
    end: int
    log: list[str]
    level: Level | None = None
    """The results within it."""


@dataclass(slots=True)
class Level:
    """The results at one depth of nesting."""

    indent: int
    name: str | None = None
    hashed: bool = False
    """Each of its lines has one hash sign more than those around it: kselftest's runner."""
    headed: bool = False
    """It began with a version, a header or a plan."""
    flat: bool = False
    """It has the indent of the level around it, so that its plan says where it ends."""
    plan: Line | None = None
    nodes: list[Node] = field(default_factory=list)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    """The lines since its last result."""
    begin: int = 0
    """The number of the first line after its last result."""
    faults: list[str] = field(default_factory=list)
    next_name: str | None = None
    """The name of the group that follows, as TAP 14 gives it."""
    earlier: list[Level] = field(default_factory=list)
    """Outputs that came before in the same group: one of kselftest's tests may call several programs."""

    @property
    def fresh(self) -> bool:
        return self.plan is None and not self.nodes and self.name is None

    @property
    def full(self) -> bool:
        return self.plan is not None and len(self.nodes) >= (self.plan.number or 0)

    def set_plan(self, line: Line) -> None:
        if self.plan is not None and self.plan.number != line.number:
            self.faults.append("has two plans")
        self.plan = self.plan or line


class Walk:
    """Goes through the levels of an output, and collects its cases and what is wrong with it."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.problems: list[str] = []

    def level(self, level: Level, path: tuple[str, ...]) -> None:
        for earlier in level.earlier:
            self.level(earlier, path)
        self.problems += _faults(level, ".".join(path))
        for index, node in enumerate(level.nodes, start=1):
            number = node.line.number if node.line and node.line.number is not None else index
            self._node(node, (*path, node.name or f"case {number}"))

    def _node(self, node: Node, path: tuple[str, ...]) -> None:
        before = len(self.cases), len(self.problems)
        group = node.level
        if group is not None and _is_judged(group, node.line):
            self.level(group, path)
        if node.line is None:
            self.problems.append(f"{'.'.join(path)} has no result: the output ends early")
            return
        status = _status(node.line)
        within = self.cases[before[0] :]
        if within and not (status == "failed" and not any(case.bad for case in within)):
            return
        if len(self.problems) > before[1] and status != "failed":
            return
        reason = node.line.comment or (find_reason(node.log) if status == "failed" else None)
        if within:
            reason = reason or "it failed although each of its cases passed"
        expectations = find_expectations(node.log) if status == "failed" else ()
        reason = reason or next((each.message for each in expectations), None)
        self.cases.append(Case(path, status, reason, expectations, tuple(node.log), (node.begin, node.end)))


def _is_judged(group: Level, result: Line | None) -> bool:
    """Return whether a group must have cases: one that was skipped as a whole needs none, nor one without a plan."""
    if group.nodes or result is None:
        return True
    return group.plan is not None and result.directive != "SKIP"


def _status(line: Line) -> Status:
    if line.directive == "SKIP":
        return "skipped"
    if line.directive in ("TIMEOUT", "ERROR"):
        return "failed"
    if line.directive == "XFAIL" or (line.directive == "TODO" and not line.ok):
        return "expected-failure"
    return "passed" if line.ok else "failed"


def _faults(level: Level, name: str) -> list[str]:
    """Return what is wrong with the results of one level."""
    named = f"{name} " if name else "the test output "
    count, plan = len(level.nodes), level.plan
    faults = [f"{named}{fault}" for fault in level.faults]
    if plan is not None and plan.number == 0 and not count:
        return faults if plan.directive == "SKIP" else [*faults, f"{named}has no case"]
    if plan is None and not count:
        return [*faults, f"{named}ends before its first case"]
    if plan is not None and plan.number != count:
        faults.append(f"{named}has {count} of {plan.number} results")
    elif not _in_sequence(level, outermost=not name):
        faults.append(f"{named}has results whose numbers are not in sequence")
    return faults


def _in_sequence(level: Level, outermost: bool) -> bool:
    """Return whether no number is missing and none comes twice.

    KUnit numbers the suites of all modules of a boot, so the first number may be any where a plan gives the count, or
    where no line announces the level.
    """
    numbers = [node.line.number if node.line else None for node in level.nodes]
    free = level.indent == OUTERMOST or (level.plan is not None and outermost)
    first = (next((number for number in numbers if number is not None), 1) if free else 1) if numbers else 1
    return all(number in (None, index) for index, number in enumerate(numbers, start=first))
