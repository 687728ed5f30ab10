"""Name the test case in which the kernel crashed: the one whose result came next, or the one without a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.ktap.case_results import Case, Running, TestOutput
from kmlab.kernel.ktap.output_reader import read_test_output
from kmlab.kernel.log.records import Record

_CALLS_CASE = "kunit_try_run_case"
"""The function that calls each case (lib/kunit/test.c)."""


def read_kernel_log(records: Sequence[Record], crashes: Sequence[Crash], *, program: bool = False) -> TestOutput:
    """Return the results that the kernel printed, with each crash in the case that was running."""
    output = read_test_output((record.text for record in records), program=program)
    if not output:
        return output
    begins = [(crash, begin_of(crash, records)) for crash in crashes]
    return with_crashes(output, [(crash, begin) for crash, begin in begins if begin is not None])


def begin_of(crash: Crash, records: Sequence[Record]) -> int | None:
    """Return the number of the record that a crash begins with; None if it is not among these."""
    first = crash.text.split("\n", 1)[0]
    exact = (n for n, r in enumerate(records) if r.text == first and r.time == crash.time)
    later = (n for n, r in enumerate(records) if crash.time is not None and r.time is not None and r.time >= crash.time)
    return next(exact, next(later, None))


def with_crashes(output: TestOutput, crashes: Sequence[tuple[Crash, int]]) -> TestOutput:
    """Return the results with each crash in its case; a number is the line of the output that a crash begins with."""
    for crash, number in crashes:
        output = _with_crash(output, crash, number)
    return output


def _with_crash(output: TestOutput, crash: Crash, number: int) -> TestOutput:
    index = next((n for n, case in enumerate(output.cases) if case.span[0] <= number <= case.span[1]), None)
    if index is not None:
        case = _crashed(output.cases[index], crash)
        return replace(output, cases=(*output.cases[:index], case, *output.cases[index + 1 :]))
    running = next((each for each in output.running if each.begin <= number), None)
    if running is None or any(case.path == _path(running, crash) for case in output.cases):
        return output
    case = _crashed(Case(_path(running, crash), "passed", span=(running.begin, number)), crash)
    return replace(output, cases=(*output.cases, replace(case, status="crashed")))


def _crashed(case: Case, crash: Crash) -> Case:
    """Return a case with the crash that happened in it. A warning does not end a case."""
    if crash.kind == "warning" and not crash.fatal:
        return replace(case, reason=case.reason or crash.title)
    return replace(case, status="crashed", reason=crash.title)


def _path(running: Running, crash: Crash) -> tuple[str, ...]:
    """Return the case that was running, with the name of the function that KUnit had called."""
    names = [frame.name for frame in crash.frames if frame.reliable]
    if _CALLS_CASE in names and (at := names.index(_CALLS_CASE)) and not names[at - 1].startswith("kunit_"):
        return (*running.path[:-1], names[at - 1])
    return running.path
