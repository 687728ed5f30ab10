"""Turn the tests in a saved log into the result of a run, so that every report can show them."""

from __future__ import annotations

from pathlib import Path

from kmlab.common.events import printable
from kmlab.diagnosis.saved_tests import judge_tests
from kmlab.kernel.crash.crash import outcome_of
from kmlab.run.case_collection import expectation_diagnostics
from kmlab.run.result import RunResult, worst

GUEST = "saved-log"
"""What takes the place of a guest's name."""


def saved_result(file: str, folder: Path) -> tuple[RunResult, tuple[str, ...]]:
    """Return the result of a saved log, and notes about it. Places in sources are relative to `folder`."""
    saved = judge_tests(file)
    tests, crashes = saved.tests, saved.crashes
    outcome = worst([*(outcome_of(crash) for crash in crashes), *(["test-failed"] if tests.bad else [])])
    title = tests.summary if tests.bad else None
    if crashes and outcome != "test-failed":
        title = crashes[0].title
    result = RunResult(
        module="stdin" if file == "-" else printable(Path(file).name),
        source=".",
        folder=folder,
        guest=GUEST,
        outcome=outcome,
        title=title,
        reason=tests.summary if tests.bad else None,
        crashes=crashes,
        diagnostics=expectation_diagnostics(tests),
        tests=tests,
        log=saved.log,
    )
    return result, saved.notes
