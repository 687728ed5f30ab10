"""Collect the results of the tests that ran in a run: from the kernel's log, from KUnit, and from the exercise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.ktap.case_results import TestOutput, joined
from kmlab.kernel.ktap.crashed_case import read_kernel_log, with_crashes
from kmlab.kernel.ktap.output_reader import read_test_output
from kmlab.kernel.log.records import Record
from kmlab.kernel.symbols.symbolizer import relative_path
from kmlab.run.context.results import Results

_AT_THE_END = 1 << 62


def collect_cases(
    results: Results, records: Sequence[Record], crashes: Sequence[Crash], folder: PurePosixPath | None
) -> TestOutput:
    """Return the results of all tests of a run. `folder` is where the guest has the module's sources."""
    kernel = read_kernel_log([record for record in records if record.from_kernel], crashes)
    for text in results.kunit_outputs:
        kernel = _with_kept(kernel, read_test_output(text.split("\n")))
    program = read_test_output(results.exercise_log.split("\n"), program=True)
    if not results.exercise_ended_well:
        named = {case.reason for case in kernel.cases if case.status == "crashed"}
        program = with_crashes(program, [(c, _AT_THE_END) for c in crashes if c.title not in named][:1])
    return _placed(joined((kernel, program)), folder)


def expectation_diagnostics(output: TestOutput) -> tuple[Diagnostic, ...]:
    """Return each failed expectation as an error at its place in the sources."""
    return tuple(
        Diagnostic(each.file, each.line, None, "error", f"{case.full_name}: {each.message}", of_test=True)
        for case in output.cases
        for each in case.expectations
    )


def _with_kept(log: TestOutput, kept: TestOutput) -> TestOutput:
    """Return the results of the kernel's log with those that KUnit kept of one suite.

    KUnit keeps only the first bytes of what a case prints. Where the log has the suite, too, its results count, and a
    failure that it does not have.
    """
    suites = {case.path[0] for case in kept.cases}
    if not suites & {case.path[0] for case in log.cases}:
        return joined((log, replace(kept, spans=())))
    failed = {case.path: case for case in kept.cases if case.bad}
    cases = tuple(case if case.bad else failed.get(case.path, case) for case in log.cases)
    return replace(log, cases=cases)


def _placed(output: TestOutput, folder: PurePosixPath | None) -> TestOutput:
    """Return the results with the places of expectations relative to the module's folder."""
    cases = tuple(
        replace(
            case, expectations=tuple(each._replace(file=relative_path(each.file, folder)) for each in case.expectations)
        )
        for case in output.cases
    )
    return replace(output, cases=cases)
