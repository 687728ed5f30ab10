"""Make what an agent gets: compact verdicts, references to evidence instead of dumps, and sensible next calls.

All text of a guest or a build is made printable here: an agent's terminal may show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from kmlab.common.events import printable
from kmlab.kernel.crash.crash import Crash
from kmlab.report.case_lines import case_about, counts
from kmlab.report.finding import source_lines
from kmlab.run.evidence import evidence_files
from kmlab.run.result import RunResult

_TEXT = 400
"""Characters of one text at most."""
_LINE = 2000
"""Characters of a line of a file at most."""
_FINDINGS, _DIAGNOSTICS, _CASES, _FRAMES, _PASSED = 3, 5, 10, 8, 200
_LOG_LINES = 12


class NextCall(TypedDict):
    """A call that is likely to help now."""

    tool: str
    arguments: dict[str, Any]
    why: str


class AgentFinding(TypedDict):
    """One bug, as the kernel reported it."""

    kind: str
    title: str
    function: str | None
    place: str | None
    """file:line, relative to the module's folder."""
    source: list[str]
    """The lines around it; `>` marks the guilty one."""
    frames: list[str]
    reason: str | None


class Evidence(TypedDict):
    """Where the rest is: `read_evidence` reads these files."""

    run: str
    files: list[str]


class AgentVerdict(TypedDict):
    """The verdict of one run."""

    module: str
    guest: str
    kernel: str | None
    outcome: str
    expected: list[str]
    ok: bool
    """Whether the run is as lab.yaml or the call expects."""
    title: str | None
    reason: str | None
    unmet: list[str]
    findings: list[AgentFinding]
    errors: list[str]
    """The compiler's first errors, as file:line: message."""
    tests: str | None
    """How many test cases there were; the failed ones are in `failed_tests`."""
    failed_tests: list[str]
    log_end: list[str]
    """The last records of the kernel's log, only of a run that is not as expected."""
    seconds: float
    evidence: Evidence | None
    next: list[NextCall]


class AgentTable(TypedDict):
    """The verdicts of many runs."""

    ok: bool
    runs: int
    not_as_expected: list[AgentVerdict]
    as_expected: list[str]
    """The other runs in a line each."""


class AgentFindings(TypedDict):
    """The findings in a saved log."""

    findings: list[AgentFinding]
    notes: list[str]
    unread: str | None
    """The first line that looks like kernel output and could not be read."""


class EvidencePart(TypedDict):
    """Lines of a file of a run."""

    lines: list[str]
    """Each with its number."""
    total_lines: int
    """Of the file; with `contains`, the lines that contain the text."""
    next_line: int | None
    """The `first_line` of the next call; null at the end."""


def verdict_of(result: RunResult) -> AgentVerdict:
    """Return the compact verdict of a run."""
    return {
        "module": result.module,
        "guest": result.guest,
        "kernel": result.kernel,
        "outcome": result.outcome,
        "expected": list(result.expect.outcome),
        "ok": result.ok,
        "title": _short(result.title),
        "reason": _short(result.reason),
        "unmet": [printable(each, _TEXT) for each in result.unmet],
        "findings": [finding_of(crash, result.folder, result) for crash in result.crashes[:_FINDINGS]],
        "errors": list(_errors(result)),
        "tests": counts(result.tests) if result.tests else None,
        "failed_tests": [
            printable(f"{case.full_name}{case_about(case)}", _TEXT) for case in result.tests.cases if case.bad
        ][:_CASES],
        "log_end": [] if result.ok else [printable(record.text, _TEXT) for record in result.log[-_LOG_LINES:]],
        "seconds": round(result.seconds, 1),
        "evidence": _evidence(result.directory),
        "next": list(_next_calls(result)),
    }


def table_of(results: Sequence[RunResult]) -> AgentTable:
    """Return the verdicts of many runs: in full those that are not as expected, a line for each other one."""
    good = [result for result in results if result.ok]
    lines = [f"{r.outcome}  {r.module} on {r.guest} ({r.kernel})  {r.seconds:.1f} s" for r in good[:_PASSED]]
    if len(good) > _PASSED:
        lines.append(f"and {len(good) - _PASSED} more")
    return {
        "ok": all(result.ok for result in results),
        "runs": len(results),
        "not_as_expected": [verdict_of(result) for result in results if not result.ok],
        "as_expected": [printable(line, _TEXT) for line in lines],
    }


def finding_of(crash: Crash, source: Path | None, result: RunResult | None = None) -> AgentFinding:
    """Return a finding with its source lines, which are in `source`."""
    shown = result or RunResult(module=crash.module or "", source=".", folder=source, guest="")
    lines = source_lines(shown, crash.file, crash.line)
    return {
        "kind": crash.kind,
        "title": printable(crash.title, _TEXT),
        "function": _short(crash.function),
        "place": _short(f"{crash.file}:{crash.line}") if crash.file else None,
        "source": [printable(f"{'>' if each.marked else ' '} {each.number:4}  {each.text}", _TEXT) for each in lines],
        "frames": [
            printable(" ".join(filter(None, (frame.shown, frame.file and f"{frame.file}:{frame.line}"))), _TEXT)
            for frame in crash.frames
            if frame.reliable
        ][:_FRAMES],
        "reason": _short(crash.reason),
    }


def part_of(text: str, first: int, most: int, contains: str | None) -> EvidencePart:
    """Return at most `most` lines of a text, from line `first` on; with `contains`, of those lines that contain it."""
    numbered = [(n, line) for n, line in enumerate(text.splitlines(), 1) if contains is None or contains in line]
    shown = [(n, line) for n, line in numbered if n >= first]
    return {
        "lines": [printable(f"{n}: {line}", _LINE) for n, line in shown[:most]],
        "total_lines": len(numbered),
        "next_line": shown[most][0] if len(shown) > most else None,
    }


def _errors(result: RunResult) -> Iterator[str]:
    wrong = [each for each in result.diagnostics if each.severity == "error"]
    for each in wrong[:_DIAGNOSTICS]:
        place = ":".join(str(part) for part in (each.file, each.line) if part is not None)
        yield printable(f"{place}: {each.message}" if place else each.message, _TEXT)
    if len(wrong) > _DIAGNOSTICS:
        yield f"and {len(wrong) - _DIAGNOSTICS} more in build.log"


def _evidence(folder: Path | None) -> Evidence | None:
    return {"run": folder.name, "files": evidence_files(folder)} if folder else None


def _next_calls(result: RunResult) -> Iterator[NextCall]:
    """Return what helps after such an outcome; nothing after an expected one."""
    if result.ok:
        return
    run = result.directory.name if result.directory else ""

    def read(file: str, why: str) -> NextCall:
        return {"tool": "read_evidence", "arguments": {"run": run, "file": file}, "why": why}

    def gdb(*commands: str, why: str) -> NextCall:
        return {"tool": "gdb_batch", "arguments": {"guest": result.guest, "commands": list(commands)}, "why": why}

    if result.outcome == "build-failed":
        yield read("build.log", "it has all that make printed")
    elif result.outcome == "error":
        yield {
            "tool": "run",
            "arguments": {"module": result.source, "fresh": True},
            "why": "the lab failed, not the module",
        }
    elif result.outcome == "load-failed":
        yield read("commands.log", "it has what insmod printed")
    elif result.outcome == "hang" and result.guest_survived:
        yield gdb("thread apply all bt 8", why="the guest still hangs: see what each CPU does")
    else:
        yield read("dmesg.txt", "it has the kernel's whole log")
    if result.crashes and result.guest_survived and (function := result.crashes[0].function):
        yield gdb(
            f"info line {function}", f"disassemble /s {function}", why="the guest still runs: see the code of the crash"
        )


def _short(text: str | None) -> str | None:
    return None if text is None else printable(text, _TEXT)
