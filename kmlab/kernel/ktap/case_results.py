"""Hold what a test output comes to: one result for each case, and why the whole cannot be a pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Status = Literal["passed", "failed", "skipped", "expected-failure", "crashed"]
_BAD = frozenset({"failed", "crashed"})
_MOST_NAMED = 3
"""Cases and problems that are named in one sentence."""


class Expectation(NamedTuple):
    """One expectation of a test that did not hold."""

    file: str
    """As the compiler was given it."""
    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Case:
    """One test case, and how it ended."""

    path: tuple[str, ...]
    """The names of its groups, outermost first, then its own name."""
    status: Status
    reason: str | None = None
    """Why it failed or was skipped, if its output says so."""
    expectations: tuple[Expectation, ...] = ()
    """Those that failed, in order."""
    log: tuple[str, ...] = ()
    """The last lines that were printed while it ran."""
    span: tuple[int, int] = (0, 0)
    """The numbers of the first line that belongs to it, and of its result line."""

    @property
    def name(self) -> str:
        """Return its own name."""
        return self.path[-1]

    @property
    def suite(self) -> str:
        """Return the names of its groups as one word; empty if it has none."""
        return ".".join(self.path[:-1])

    @property
    def full_name(self) -> str:
        """Return its name with those of its groups."""
        return ".".join(self.path)

    @property
    def bad(self) -> bool:
        """Return whether a test with this case is not a pass."""
        return self.status in _BAD


class Running(NamedTuple):
    """The case that was running when a test output ended early."""

    path: tuple[str, ...]
    """As in Case; a case whose name is not known is called `case 3`."""
    begin: int
    """The number of the first line after the result before it."""


@dataclass(frozen=True, slots=True)
class TestOutput:
    """The results in one or several test outputs."""

    __test__ = False
    """This is no test of pytest's."""

    cases: tuple[Case, ...] = ()
    problems: tuple[str, ...] = ()
    """Why the output is not complete or contradicts itself; a sentence each."""
    running: tuple[Running, ...] = ()
    """For each output that ended early, the case that was running."""
    spans: tuple[tuple[int, int], ...] = ()
    """The numbers of the first and of the last line of each output."""

    def __bool__(self) -> bool:
        return bool(self.cases or self.problems)

    @property
    def bad(self) -> bool:
        """Return whether a case failed, or the output cannot be trusted to be a pass."""
        return bool(self.problems) or any(case.bad for case in self.cases)

    @property
    def summary(self) -> str:
        """Return one sentence: how many cases failed, the first of them with the reason, and what else is wrong."""
        bad = [case for case in self.cases if case.bad]
        named = [f"{case.full_name}{' crashed' if case.status == 'crashed' else ''}" for case in bad[:_MOST_NAMED]]
        reasons = [f"{name}: {case.reason}" if case.reason else name for name, case in zip(named, bad, strict=False)]
        more = [f"and {len(bad) - _MOST_NAMED} more"] if len(bad) > _MOST_NAMED else []
        cases = f"{len(bad)} of {self.count_words()} failed: {', '.join([*reasons, *more])}" if bad else ""
        ran = [f"{each.path[-1]} of {'.'.join(each.path[:-1]) or 'the tests'} was running" for each in self.running[:1]]
        problems = [*self.problems[:_MOST_NAMED], *(ran if not any(c.status == "crashed" for c in bad) else [])]
        return "; ".join(filter(None, [cases, *problems]))

    def count_words(self) -> str:
        """Return the number of cases, in words."""
        return f"{len(self.cases)} test case{'' if len(self.cases) == 1 else 's'}"

    @property
    def counts(self) -> dict[str, int]:
        """Return how many cases have each status; only those that occur."""
        return dict(Counter(case.status for case in self.cases))


def joined(outputs: Iterable[TestOutput]) -> TestOutput:
    """Return several test outputs as one."""
    listed = list(outputs)
    return TestOutput(
        tuple(case for each in listed for case in each.cases),
        tuple(problem for each in listed for problem in each.problems),
        tuple(running for each in listed for running in each.running),
        tuple(span for each in listed for span in each.spans),
    )
