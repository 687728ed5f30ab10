"""Write what GitHub Actions shows of runs: annotations on lines, and the summary of a job.

See https://docs.github.com/en/actions/writing-workflows/choosing-what-your-workflow-does/workflow-commands-for-github-actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kmlab.common.errors import LabError
from kmlab.common.events import printable
from kmlab.kernel.ktap.case_results import Case
from kmlab.report.case_lines import case_place
from kmlab.report.finding import summary
from kmlab.run.result import RunResult

_MOST_CASES = 9
"""GitHub shows ten annotations of each kind for a step; the run's own is one of them."""
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
"""The environment variable with the file whose Markdown GitHub shows on the page of a job."""


def github_annotations(results: Sequence[RunResult]) -> list[str]:
    """Return `::error file=…,line=…::…` for each run that was not as expected, on the module's own lines.

    Each failed case has a line of its own, up to the number that GitHub shows.
    """
    lines = []
    for result in results:
        if result.ok:
            continue
        lines += [_case_line(result, case) for case in result.tests.cases if case.bad][:_MOST_CASES]
        place = next(((c.file, c.line) for c in result.crashes if c.file), None)
        place = place or next(((d.file, d.line) for d in result.diagnostics if d.file), None)
        where = f"file={_property(f'{result.source}/{place[0]}')},line={place[1] or 1}," if place else ""
        title = _property(f"{result.module} on {result.guest}")
        lines.append(f"::error {where}title={title}::{_data(printable(summary(result)))}")
    return lines


def _case_line(result: RunResult, case: Case) -> str:
    file, line = case_place(case)
    where = f"file={_property(f'{result.source}/{file}')},line={line or 1}," if file else ""
    title = _property(f"{case.full_name} on {result.guest}")
    return f"::error {where}title={title}::{_data(printable(case.reason or case.status))}"


def add_job_summary(results: Sequence[RunResult], environment: Mapping[str, str]) -> None:
    """Append the runs to this job's summary, if GitHub Actions asks for one."""
    path = environment.get(SUMMARY_VARIABLE)
    if not path:
        return
    from kmlab.report.formats import markdown

    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(markdown.text(results))
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise LabError(f"{SUMMARY_VARIABLE} {printable(path)}: cannot write: {cause}") from error


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
