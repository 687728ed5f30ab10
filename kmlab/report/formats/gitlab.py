"""Write a report as GitLab's code quality JSON (https://docs.gitlab.com/ci/testing/code_quality/)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from kmlab.common.events import printable
from kmlab.report.finding import findings
from kmlab.run.result import RunResult

_SEVERITY = {"error": "critical", "warning": "minor"}


def text(results: Sequence[RunResult]) -> str:
    """Return each finding that has a place in the sources, once."""
    listed = [
        {
            "description": printable(f"{finding.message} (on {finding.where})"),
            "check_name": finding.rule,
            # GitLab takes two entries of one fingerprint for the same.
            "fingerprint": hashlib.sha256(
                f"{finding.fingerprint} {finding.path} {finding.line}".encode("utf-8", "backslashreplace")
            ).hexdigest(),
            "severity": _SEVERITY[finding.level],
            "location": {"path": printable(finding.path), "lines": {"begin": max(finding.line or 1, 1)}},
        }
        for finding in findings(results)
        if finding.path is not None
    ]
    return json.dumps(listed, indent=1) + "\n"
