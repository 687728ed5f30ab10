"""Write a report as a JUnit file, which CI servers read (https://github.com/testmoapp/junitxml)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from kmlab.diagnosis.console import dmesg
from kmlab.kernel.ktap.case_results import Case
from kmlab.report.case_lines import places
from kmlab.report.finding import summary
from kmlab.run.result import RunResult

_LOG_LINES = 200


def text(results: Sequence[RunResult]) -> str:
    """Return one test case for each run, and after it one for each case that the run's tests have.

    The class of a run is the guest, and its name is the module. The class of a case has the module and the suite, too.
    """
    failed = sum(not r.ok and r.outcome != "error" for r in results)
    suite = ET.Element(
        "testsuite",
        name="kmlab",
        tests=str(len(results) + sum(len(r.tests.cases) for r in results)),
        failures=str(failed + sum(case.bad for r in results if not r.ok for case in r.tests.cases)),
        errors=str(sum(not r.ok and r.outcome == "error" for r in results)),
        skipped=str(
            sum(r.ok and r.outcome == "skipped" for r in results)
            + sum(_skipped(case, r) is not None for r in results for case in r.tests.cases)
        ),
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
        for each in result.tests.cases:
            _add_case(suite, each, result)
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ET.Element, case: Case, result: RunResult) -> None:
    classname = ".".join(filter(None, (result.guest, result.module, case.suite)))
    element = ET.SubElement(suite, "testcase", classname=_xml_safe(classname), name=_xml_safe(case.name), time="0.000")
    skipped = _skipped(case, result)
    if skipped is not None:
        ET.SubElement(element, "skipped", message=_xml_safe(skipped))
    elif case.bad:
        message = _xml_safe(case.reason or case.status)
        failure = ET.SubElement(element, "failure", type=case.status, message=message)
        failure.text = _xml_safe("\n".join(places(case)) or message)
    if case.bad and case.log:
        ET.SubElement(element, "system-out").text = _xml_safe("".join(f"{line}\n" for line in case.log))


def _skipped(case: Case, result: RunResult) -> str | None:
    """Return why a case is no failure although it did not pass; None for every other case."""
    if case.status in ("skipped", "expected-failure"):
        return case.reason or case.status
    return f"it {case.status}, as lab.yaml expects" if case.bad and result.ok else None


def _xml_safe(text: str) -> str:
    return "".join(c for c in text if c in "\n\t" or c.isprintable())
