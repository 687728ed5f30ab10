"""Write a report as a JUnit file, which CI servers read (https://github.com/testmoapp/junitxml)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from kmlab.diagnosis.console import dmesg
from kmlab.report.finding import summary
from kmlab.run.result import RunResult

_LOG_LINES = 200


def text(results: Sequence[RunResult]) -> str:
    """Return one test case for each run: the class is the guest, the name is the module."""
    suite = ET.Element(
        "testsuite",
        name="kmlab",
        tests=str(len(results)),
        failures=str(sum(not r.ok and r.outcome != "error" for r in results)),
        errors=str(sum(not r.ok and r.outcome == "error" for r in results)),
        skipped=str(sum(r.ok and r.outcome == "skipped" for r in results)),
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
            kind, message = "error" if result.outcome == "error" else "failure", _xml_safe(summary(result))
            ET.SubElement(case, kind, type=result.outcome, message=message).text = message
        elif result.outcome == "skipped":
            ET.SubElement(case, "skipped", message=_xml_safe(summary(result)))
        ET.SubElement(case, "system-out").text = _xml_safe(dmesg(result.log[-_LOG_LINES:]))
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _xml_safe(text: str) -> str:
    return "".join(c for c in text if c in "\n\t" or c.isprintable())
