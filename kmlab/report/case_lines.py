"""Turn the results of tests into lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from kmlab.kernel.ktap.case_results import Case, Status, TestOutput

_WORDS: dict[Status, str] = {
    "passed": "ok",
    "failed": "FAILED",
    "skipped": "skipped",
    "expected-failure": "fails as known",
    "crashed": "CRASHED",
}
_SHOWN = 100
"""Cases that are listed in full; of more, those that are not bad are only counted."""


def case_lines(tests: TestOutput, *, only_bad: bool = False) -> Iterator[str]:
    """Return a line for each case, one for each problem, and the counts."""
    if not tests:
        return
    every = not only_bad and len(tests.cases) <= _SHOWN
    for case in tests.cases:
        if every or case.bad:
            yield f"  {case_word(case):<9} {case.full_name}{case_about(case)}"
    yield from (f"  INCOMPLETE  {problem}" for problem in tests.problems)
    yield f"  {counts(tests)}"


def case_word(case: Case) -> str:
    """Return how a case ended, in a word."""
    return _WORDS[case.status]


def case_about(case: Case) -> str:
    """Return the place and the reason of a case, behind a colon; empty if there is nothing to say."""
    place = ":".join(str(part) for part in case_place(case) if part is not None)
    about = ": ".join(filter(None, (place, case.reason)))
    return f": {about}" if about else ""


def case_place(case: Case) -> tuple[str | None, int | None]:
    """Return the file and line of a case's first failed expectation."""
    first = next(iter(case.expectations), None)
    return (first.file, first.line) if first else (None, None)


def places(case: Case) -> list[str]:
    """Return each failed expectation of a case with its place."""
    return [f"{each.file}:{each.line}: {each.message}" for each in case.expectations]


def counts(tests: TestOutput) -> str:
    """Return how many cases there are, and how they ended."""
    found = tests.counts
    parts = [f"{found[status]} {status}" for status in _WORDS if status in found]
    return f"{tests.count_words()}: {', '.join(parts)}" if parts else tests.count_words()
