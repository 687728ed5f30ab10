"""Results for machines other than kmlab's own readers: JUnit files and GitHub's workflow commands."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.diagnosis.console import dmesg
from kmlab.run.result import RunResult

_LOG_LINES = 200


def check_junit(path: Path) -> None:
    """ConfigError unless the file can be written; asked before all that it will tell of."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"--junit {printable(str(path))}: cannot be written", "give a file in a folder of yours")


def write_junit(path: Path, results: Sequence[RunResult]) -> None:
    """One test case a run: the class is the guest, the name the module."""
    suite = ET.Element(
        "testsuite",
        name="kmlab",
        tests=str(len(results)),
        failures=str(sum(not r.ok and r.outcome != "error" for r in results)),
        errors=str(sum(not r.ok and r.outcome == "error" for r in results)),
        time=f"{sum(r.seconds for r in results):.3f}",
    )
    for result in results:
        case = ET.SubElement(
            suite,
            "testcase",
            classname=_xml_safe(result.guest),
            name=_xml_safe(result.module),
            time=f"{result.seconds:.3f}",
        )
        if not result.ok:
            kind = "error" if result.outcome == "error" else "failure"
            ET.SubElement(case, kind, type=result.outcome, message=summary(result)).text = summary(result)
        ET.SubElement(case, "system-out").text = _xml_safe(dmesg(result.log[-_LOG_LINES:]))
    ET.indent(suite)
    paths.write_text(path, ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n")


def github_annotations(results: Sequence[RunResult]) -> list[str]:
    """`::error file=…,line=…::…` for each run that was not as expected, on the module's own lines."""
    lines = []
    for result in results:
        if result.ok:
            continue
        place = next(((c.file, c.line) for c in result.crashes if c.file), None)
        place = place or next(((d.file, d.line) for d in result.diagnostics if d.file), None)
        where = f"file={_property(f'{result.source}/{place[0]}')},line={place[1] or 1}," if place else ""
        lines.append(
            f"::error {where}title={_property(f'{result.module} on {result.guest}')}::{_data(summary(result))}"
        )
    return lines


def summary(result: RunResult) -> str:
    """One line: the outcome, and what it is about."""
    about = result.title or result.reason or ""
    missed = "; ".join(result.unmet)
    return _xml_safe(": ".join(part for part in (result.outcome, about, missed) if part))


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _xml_safe(text: str) -> str:
    return "".join(c for c in text if c in "\n\t" or c.isprintable())
