"""Write a report as Markdown for a pull request or a job's summary (https://github.github.com/gfm/).

All text from a guest is formatted as code: there it can mention nobody, link nowhere and contain no tag.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from kmlab.common.events import printable
from kmlab.diagnosis.console import dmesg
from kmlab.kernel.ktap.case_results import Case
from kmlab.report import grid
from kmlab.report.case_lines import counts
from kmlab.report.finding import key_records, run_place, source_lines, summary
from kmlab.run.result import RunResult

_LIMIT = 60_000
"""Characters. A comment on GitHub holds 65,536."""
_CELLS = 2_000
"""The most cells of a table; a larger one shows only the rows that are not as expected."""
_LOG_LINES = 30
_FRAMES = 12
_CASES = 20
"""The most cases of a run that are listed."""


def text(results: Sequence[RunResult]) -> str:
    """Return the table of modules and guests, then each run that is not as expected, as far as there is room."""
    page = grid.grid_of(results)
    wrong = [result for result in results if not result.ok]
    parts = [_headline(results, wrong), "", *_table(page), ""]
    parts += [f"- {'✓' if g.ok else '✗'} {_code(_listed(g))}: {_code(g.sentence)}" for g in page.groups if not g.ok]
    report = "\n".join(parts) + "\n"
    if len(report) > _LIMIT:
        report = _headline(results, wrong) + "\n\nThe table is too large to be shown here.\n"
    for number, result in enumerate(wrong):
        part = "\n" + "\n".join(_run(result)) + "\n"
        if len(report) + len(part) > _LIMIT:
            return report + f"\n{len(wrong) - number} more runs are not shown here.\n"
        report += part
    return report


def _headline(results: Sequence[RunResult], wrong: Sequence[RunResult]) -> str:
    if not wrong:
        return f"### ✓ kmlab: {_runs(len(results))} as expected"
    return f"### ✗ kmlab: {len(wrong)} of {_runs(len(results))} not as expected"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _table(page: grid.Grid) -> Iterator[str]:
    if not page.columns:
        return
    modules = list(page.modules)
    if len(modules) * len(page.columns) > _CELLS:
        modules = [m for m in modules if any(not r.ok for (name, _), r in page.cells.items() if name == m)]
    heads = [f"{_code(c.guest)}<br>{_code(c.kernel)}" if c.kernel else _code(c.guest) for c in page.columns]
    yield f"| module | {' | '.join(_cell(head) for head in heads)} |"
    yield f"|---|{'---|' * len(heads)}"
    for module in modules:
        runs = [page.cells.get((module, column.guest)) for column in page.columns]
        cells = ["–" if run is None else run.outcome if run.ok else f"**✗ {run.outcome}**" for run in runs]
        yield f"| {_cell(_code(module))} | {' | '.join(cells)} |"


def _listed(group: grid.Group) -> str:
    return ", ".join(group.modules[:6]) + (f" and {len(group.modules) - 6} more" if len(group.modules) > 6 else "")


def _run(result: RunResult) -> Iterator[str]:
    head = html.escape(printable(f"{result.module} on {run_place(result)}"))
    yield f"<details><summary>✗ <b>{result.outcome}</b> <code>{head}</code></summary>"
    yield ""
    yield _code(summary(result))
    if result.reason and result.reason != result.title:
        yield ""
        yield _code(result.reason)
    for crash in result.crashes[:3]:
        yield from _shown(result, crash.file, crash.line, crash.title)
        frames = [frame for frame in crash.frames if frame.reliable][:_FRAMES]
        if frames:
            yield from _fence(
                [f"{f.function} {f'[{f.module}] ' if f.module else ''}{_at(f.file, f.line)}" for f in frames]
            )
    if result.tests:
        yield ""
        yield f"{_code(counts(result.tests))}"
        yield ""
        bad = [case for case in result.tests.cases if case.bad]
        yield from (f"- ✗ {_code(case.full_name)}{_case_reason(case)}" for case in bad[:_CASES])
        if len(bad) > _CASES:
            yield f"- and {len(bad) - _CASES} more"
        yield from (f"- ✗ {_code(problem)}" for problem in result.tests.problems[:_CASES])
    for diagnostic in [d for d in result.diagnostics if d.severity == "error"][:5]:
        yield from _shown(result, diagnostic.file, diagnostic.line, diagnostic.message)
    if result.log:
        yield ""
        shown = key_records(result, _LOG_LINES)
        yield f"{len(shown)} of {len(result.log)} records of the kernel's log:"
        yield from _fence(dmesg(shown).splitlines())
    yield "</details>"


def _case_reason(case: Case) -> str:
    return f" {case.status}" + (f": {_code(case.reason)}" if case.reason else "")


def _shown(result: RunResult, file: str | None, line: int | None, what: str) -> Iterator[str]:
    yield ""
    yield _code(f"{_at(file, line)}: {what}" if file else what)
    lines = source_lines(result, file, line)
    if lines:
        yield from _fence([f"{'>' if each.marked else ' '} {each.number:4}  {each.text}" for each in lines], "c")


def _at(file: str | None, line: int | None) -> str:
    return ":".join(str(part) for part in (file, line) if part is not None)


def _fence(lines: Sequence[str], language: str = "") -> Iterator[str]:
    """Return a block of code that nothing in it can end."""
    safe = [printable(line, 500).rstrip() for line in lines]
    fence = "`" * max(3, 1 + max((len(run) for line in safe for run in re.findall("`+", line)), default=0))
    yield ""
    yield f"{fence}{language}"
    yield from safe
    yield fence


def _code(words: str) -> str:
    """Return text as code within a line."""
    safe = printable(words, 500).strip() or "-"
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", safe)), default=0))
    edge = " " if "`" in (safe[0], safe[-1]) else ""
    return f"{ticks}{edge}{safe}{edge}{ticks}"


def _cell(words: str) -> str:
    """Return a cell's text: a bar ends a cell even within code."""
    return words.replace("|", "\\|")
