"""Markdown for a pull request and for a job's summary: what stands there, how much, and that it is only text."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from kmlab.common.errors import LabError
from kmlab.kernel.log.records import Record
from kmlab.report.formats import markdown
from kmlab.report.formats.github import add_job_summary
from kmlab.run.result import RunResult
from tests.report.test_report import BAD, BROKEN, GOOD, HOSTILE
from tests.report.test_report_findings import crashed, repository  # noqa: F401
from tests.story import whole_result


def outside_of_code(page: str) -> str:
    """What a reader of Markdown would take for more than code."""
    page = re.sub(r"^(`{3,})c?\n.*?^\1$", "", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", page)
    return re.sub(r"<code>[^<]*</code>", "", page)


def test_runs_that_are_as_expected_are_a_table_alone() -> None:
    other = dataclasses.replace(GOOD, guest="noble", kernel="6.8.0-31-generic")
    assert markdown.text([GOOD, other]).splitlines() == [
        "### ✓ kmlab: 2 runs as expected",
        "",
        "| module | `debian` | `noble`<br>`6.8.0-31-generic` |",
        "|---|---|---|",
        "| `hello` | pass | pass |",
        "",
    ]


def test_a_run_that_is_not_as_expected_is_told_with_its_line(repository: Path) -> None:  # noqa: F811
    page = markdown.text([GOOD, crashed(repository)])
    assert page.startswith("### ✗ kmlab: 1 of 2 runs not as expected\n")
    assert "| `oops` | **✗ oops** |" in page
    assert "`oops.c:27: BUG`" in page
    assert "\n>   27  line 27\n" in page
    assert "\nnull_read [oops] oops.c:27\n" in page
    assert "[   30.100000] BUG" in page


@pytest.mark.parametrize(
    "word",
    [
        HOSTILE,
        "``` @octocat",
        "`a` <img src=x>",
        "</summary></details>",
        "a|b|c",
        "[x](https://e.org)",
        "````\n# big",
        "``",
    ],
)
def test_all_that_a_guest_says_stays_code(word: str) -> None:
    (crash,) = whole_result().crashes
    frame = crash.frames[0]._replace(function=word, module=word, file=word)
    crash = dataclasses.replace(crash, title=word, file=word, frames=(frame,))
    result = dataclasses.replace(BAD, module=word, guest=word, kernel=word, title=word, reason=word, crashes=(crash,))
    result = dataclasses.replace(result, log=(Record(1.0, "info", word, None, 0),), unmet=(word,))
    page = markdown.text([result, dataclasses.replace(BROKEN, title=word)])
    page.encode("utf-8")
    assert all(character.isprintable() for character in page.replace("\n", ""))
    left = outside_of_code(page)
    for part in ("@octocat", "<img", "https:", "owned", "# big", "<x>"):
        assert part not in left, left
    assert left.count("<details>") == left.count("</details>") == left.count("</summary>") == 2
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("| ")}
    assert len(widths) == 1


def test_a_report_of_many_runs_fits_into_a_comment() -> None:
    log = tuple(Record(1.0, "info", "x" * 400, None, 0) for _ in range(100))
    many = [dataclasses.replace(BAD, module=f"m{number}", log=log) for number in range(300)]
    page = markdown.text(many)
    assert len(page) < 65_536
    assert re.search(r"\n\d+ more runs are not shown here\.\n$", page)
    wide = [dataclasses.replace(BAD, module=f"m{n}", guest=f"g{g}") for n in range(200) for g in range(30)]
    assert len(markdown.text(wide)) < 65_536


def test_a_jobs_summary_is_appended_to_the_file_that_github_names(tmp_path: Path) -> None:
    file = tmp_path / "summary"
    file.write_text("of an earlier step\n")
    add_job_summary([GOOD], {"GITHUB_STEP_SUMMARY": str(file)})
    assert file.read_text("utf-8") == f"of an earlier step\n{markdown.text([GOOD])}"
    add_job_summary([GOOD], {})
    with pytest.raises(LabError, match="GITHUB_STEP_SUMMARY"):
        add_job_summary([GOOD], {"GITHUB_STEP_SUMMARY": str(tmp_path)})


def test_no_runs_are_no_table() -> None:
    results: list[RunResult] = []
    assert markdown.text(results) == "### ✓ kmlab: 0 runs as expected\n\n\n"
