"""Write a report as TAP 14, the Test Anything Protocol (https://testanything.org/tap-version-14-specification.html)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from kmlab.common.events import printable
from kmlab.diagnosis.console import dmesg
from kmlab.report.case_lines import places
from kmlab.report.finding import key_records, path_in_sources, source_root, summary
from kmlab.run.result import RunResult

_LOG_LINES = 40


class _Dumper(yaml.SafeDumper):
    """Indents lists below their key, because some readers of TAP know only a part of YAML."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def text(results: Sequence[RunResult]) -> str:
    """Return one test point for each run; one that is not as expected has its verdict below it, as YAML.

    The cases of a run's tests are a subtest before it.
    """
    root = source_root(results)
    lines = ["TAP version 14", f"1..{len(results)}" + ("" if results else " # no runs")]
    for number, result in enumerate(results, start=1):
        lines += _subtest(result)
        lines.append(f"{'ok' if result.ok else 'not ok'} {number} - {_description(result)}{_skip(result)}")
        if not result.ok:
            shown = yaml.dump(
                {key: value for key, value in _diagnostics(result, root) if value is not None},
                Dumper=_Dumper,
                allow_unicode=True,
                sort_keys=False,
                width=float("inf"),
            )
            # Only a line feed ends a line of TAP; YAML's other line breaks are escaped before.
            lines += [f"  {line}" for line in ("---", *shown.rstrip("\n").split("\n"), "...")]
    return "\n".join(lines) + "\n"


def _skip(result: RunResult) -> str:
    """Return TAP's directive for a run that the folder itself declined."""
    return f" # SKIP {printable(summary(result))}" if result.ok and result.outcome == "skipped" else ""


def _subtest(result: RunResult) -> Iterator[str]:
    """Return a run's cases. A failure that lab.yaml expects is one that TAP calls to be done."""
    if not result.tests.cases:
        return
    yield f"# Subtest: {_description(result)}"
    yield f"    1..{len(result.tests.cases)}"
    for number, case in enumerate(result.tests.cases, start=1):
        directive = {"skipped": "SKIP", "expected-failure": "TODO"}.get(case.status, "TODO" if result.ok else "")
        word = "not ok" if case.bad or case.status == "expected-failure" else "ok"
        comment = (
            f" # {directive} {_escaped(case.reason or '')}".rstrip()
            if directive and word + directive != "okTODO"
            else ""
        )
        yield f"    {word} {number} - {_escaped(case.full_name)}{comment}"
        if case.bad and not result.ok:
            yield from (f"    # {printable(line)}" for line in places(case) or [case.reason or case.status])


def _escaped(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace("#", "\\#")


def _description(result: RunResult) -> str:
    description = f"{result.module} on {result.guest}" + ("" if result.outcome == "pass" else f": {result.outcome}")
    return _escaped(description)


def _diagnostics(result: RunResult, root: Path | None) -> Iterator[tuple[str, Any]]:
    yield "message", printable(summary(result))
    yield "severity", "error" if result.outcome == "error" else "fail"
    yield "outcome", result.outcome
    yield "expected", list(result.expect.outcome)
    yield "kernel", result.kernel and printable(result.kernel)
    yield "seconds", round(result.seconds, 3)
    yield "reason", result.reason and printable(result.reason)
    yield "at", next(_places(result, root), None)
    yield "log", [printable(line) for line in dmesg(key_records(result, _LOG_LINES)).splitlines()] or None
    yield "evidence", str(result.directory) if result.directory else None


def _places(result: RunResult, root: Path | None) -> Iterator[dict[str, Any]]:
    places = [(crash.file, crash.line) for crash in result.crashes]
    places += [(d.file, d.line) for d in result.diagnostics if d.severity == "error"]
    for file, line in places:
        path = path_in_sources(result, file, root)
        if path:
            yield {"file": printable(path), "line": line}
