"""Write a report as SARIF 2.1.0 for code scanning (https://docs.oasis-open.org/sarif/sarif/v2.1.0/).

What GitHub reads of it: https://docs.github.com/en/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kmlab import __version__
from kmlab.common.events import printable
from kmlab.kernel.symbols.symbolizer import SourceLine
from kmlab.report.finding import Finding, findings, path_in_sources, source_lines, source_root, summary
from kmlab.run.result import RunResult

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_ROOT = "SRCROOT"
_RULES = {
    "compiler-error": "The compiler or modpost refused the module.",
    "compiler-warning": "The compiler or modpost warned about the module.",
    "failed-expectation": "An expectation of a test did not hold.",
    "failed-case": "A case of a test failed, or the output of the test is incomplete.",
    "unmet-expectation": "The run did not meet the expectations in lab.yaml.",
    "test-failed": "The exercise or a test failed, or the kernel's log is not what lab.yaml expects.",
    "unload-failed": "The module could not be unloaded.",
    "load-failed": "The kernel or the module's init function refused the module.",
    "skipped": "The folder's dkms.conf rules out the kernel.",
    "build-failed": "make left no module.",
    "hang": "A step of the run did not end.",
    "lost": "The guest is gone, and no message of its kernel says why.",
}
_HELP = (
    "Run the module again with `kmlab run DIR`. The run's folder has the kernel's log, the build's log and the console."
)


def text(results: Sequence[RunResult]) -> str:
    """Return each finding once, with all guests that have it; the lab's own errors are notifications."""
    all_findings, root = findings(results), source_root(results)
    rules = list(dict.fromkeys(finding.rule for finding in all_findings))
    run: dict[str, Any] = {
        "tool": {
            "driver": {"name": "kmlab", "version": __version__, "rules": [_rule(rule, all_findings) for rule in rules]},
        },
        "invocations": [
            {
                "executionSuccessful": not any(r.outcome == "error" for r in results),
                "toolExecutionNotifications": [_notification(r) for r in results if r.outcome == "error" and not r.ok],
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, rules.index(finding.rule), root) for finding in all_findings],
    }
    if root is not None:
        run["originalUriBaseIds"] = {_ROOT: {"uri": f"file://{_quoted(str(root).rstrip('/'))}/"}}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rule(rule: str, all_findings: Sequence[Finding]) -> dict[str, Any]:
    level = next(finding.level for finding in all_findings if finding.rule == rule)
    words = rule.replace("-", " ")
    about = _RULES.get(rule, f"The kernel reported a bug of the class '{rule}' while it ran with the module.")
    return {
        "id": rule,
        "name": f"Module {words}".title().replace(" ", ""),
        "shortDescription": {"text": f"{words.capitalize()}."},
        "fullDescription": {"text": about},
        "help": {"text": f"{about} {_HELP}"},
        "defaultConfiguration": {"level": level},
    }


def _result(finding: Finding, rule: int, root: Path | None) -> dict[str, Any]:
    first = finding.results[0]
    entry: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": rule,
        "level": finding.level,
        "message": {"text": printable(f"{finding.message} (on {finding.where})")},
        "partialFingerprints": {"kmlab/v1": finding.fingerprint},
        "properties": {"modules": sorted({printable(r.module) for r in finding.results})},
    }
    if finding.path is not None:
        entry["locations"] = [_location(finding.path, finding.line, finding.column)]
        _show(entry["locations"][0]["physicalLocation"], source_lines(first, finding.file, finding.line))
    if finding.frames:
        frames = [_frame(frame, path_in_sources(first, frame.file, root)) for frame in finding.frames if frame.reliable]
        entry["stacks"] = [{"message": {"text": "call trace"}, "frames": frames}]
    return entry


def _show(place: dict[str, Any], lines: Sequence[SourceLine]) -> None:
    """Add the guilty line's text to a place, and the lines around it."""
    if not lines:
        return
    text = "\n".join(printable(line.text) for line in lines)
    place["region"]["snippet"] = {"text": next(printable(line.text) for line in lines if line.marked)}
    place["contextRegion"] = {"startLine": lines[0].number, "endLine": lines[-1].number, "snippet": {"text": text}}


def _location(path: str, line: int | None, column: int | None) -> dict[str, Any]:
    region: dict[str, Any] = {"startLine": max(line or 1, 1)}
    if column and column > 0:
        region["startColumn"] = column
    return {"physicalLocation": {"artifactLocation": {"uri": _quoted(path), "uriBaseId": _ROOT}, "region": region}}


def _frame(frame: Any, path: str | None) -> dict[str, Any]:
    place = _location(path, frame.line, None) if path and frame.line else {}
    entry: dict[str, Any] = {"location": {**place, "message": {"text": printable(frame.function)}}}
    if frame.module:
        entry["module"] = printable(frame.module)
    return entry


def _notification(result: RunResult) -> dict[str, Any]:
    message = f"{result.module} on {result.guest}: {summary(result)}"
    return {"level": "error", "message": {"text": printable(message)}, "descriptor": {"id": "lab-error"}}


def _quoted(path: str) -> str:
    return quote(path, errors="replace")
