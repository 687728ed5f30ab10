"""Find the failed expectations in what a test printed: KUnit's (lib/kunit/assert.c), and kselftest_harness.h's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from kmlab.kernel.ktap.case_results import Expectation

_MOST, _LONGEST, _LINES = 20, 300, 6
"""Expectations of one case that are kept, characters of a message, and lines of it."""


def find_expectations(log: Sequence[str]) -> tuple[Expectation, ...]:
    """Return the failed expectations in the lines of one case."""
    found = (_read(line, log[number + 1 : number + 1 + _LINES]) for number, line in enumerate(log))
    return tuple([expectation for expectation in found if expectation][:_MOST])


def find_reason(log: Iterable[str]) -> str | None:
    """Return what KUnit says of a case that did not come to its end, or TAP's YAML of one that failed."""
    return next((found[1] or found[2] for line in log if (found := _ENDED.match(line))), None)


def find_case_name(log: Iterable[str]) -> str | None:
    """Return the case that the lines speak of: KUnit begins each with the name of the case."""
    names = [found[1] for line in log if (found := _NAME.match(line)) and found[1] != "Totals"]
    return names[-1] if names else None


def _read(line: str, after: Sequence[str]) -> Expectation | None:
    if "ION FAILED at " in line:
        found = _KUNIT.search(line)
        return Expectation(found[1], int(found[2]), _message(after)) if found else None
    found = _HARNESS.match(line) if ":" in line and "#" in line else None
    return Expectation(found["file"], int(found["line"]), found["message"][:_LONGEST]) if found else None


def _message(after: Sequence[str]) -> str:
    """Return the lines that belong to a failed expectation as one: those that follow it with an indent."""
    lines: list[str] = []
    for line in after:
        if line.lstrip().startswith("#") or (lines and line[:1] not in (" ", "\t")):
            break
        lines.append(line.strip())
    first, *rest = [line for line in lines if line] or ["the expectation does not hold"]
    return " ".join([first, ", ".join(rest)]).strip()[:_LONGEST]


_PLACE = r"[^\s:#][^:\n]{0,300}"
_KUNIT = re.compile(rf"\b(?:EXPECTAT|ASSERT)ION FAILED at ({_PLACE}):(\d{{1,7}})$")
_HARNESS = re.compile(
    r"\s*# (?:[\w.-]{1,200}: )?(?P<file>[^\s:#][^:\n]{0,300}\.(?:c|h|cc|cpp|rs)):(?P<line>\d{1,7}):"
    r"(?:[\w.]{1,200}:)? ?(?P<message>.*)"
)
_ENDED = re.compile(
    r" *(?:# [\w.-]{1,200}: (test case timed out|kunit test case crashed!|try (?:faulted|timed out)\b.*"
    r"|failed to initialize.*)|message: *(.{1,300}))"
)
_NAME = re.compile(r"\s*# ([\w.-]{1,200}): ")
