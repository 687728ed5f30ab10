"""Write which lines of modules ran: as LCOV, Cobertura or HTML. gcovr writes the last two (`kmlab[coverage]`).

gcovr reads its own JSON, which changes with each version, and Cobertura, from which its LCOV has wrong checksums: so
LCOV is written here (geninfo(1), TRACEFILE FORMAT).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from kmlab.common.errors import ConfigError
from kmlab.common.events import Deadline, printable
from kmlab.host.process import command
from kmlab.kernel.module.line_counts import LineCounts, add_up
from kmlab.run.result import RunResult

_LCOV, _COBERTURA, _PAGE = ".info", ".xml", ".html"
_ENDINGS = (_LCOV, _COBERTURA, _PAGE)
_PATIENCE = 120.0
"""Seconds for gcovr to write a report."""


def check_coverage(path: Path) -> None:
    """Raise ConfigError, before anything runs, if the report cannot be written."""
    if path.suffix and path.suffix not in _ENDINGS:
        hint = f"endings: {', '.join(_ENDINGS)}; a folder becomes a set of HTML pages"
        raise ConfigError(f"--coverage {printable(str(path))}: unknown ending", hint)
    if path.suffix != _LCOV and find_spec("gcovr") is None:
        raise ConfigError(f"--coverage {printable(str(path))} needs gcovr", "pip install 'kmlab[coverage]'")


def write_coverage(path: Path, results: Sequence[RunResult]) -> str:
    """Write the report of all runs together; return one sentence about it.

    Raise ConfigError if the kernels have counted nothing, LabError if gcovr fails.
    """
    counts = _on_host(results)
    if not counts:
        raise ConfigError(
            "no coverage: the guest's kernel has counted nothing",
            "use a guest with `kernel: debug` or `kernel: coverage`",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == _LCOV:
        path.write_text(_lcov(counts), encoding="utf-8")
    else:
        _gcovr(path, counts)
    lines = [count for numbers in counts.values() for count in numbers.values()]
    ran = sum(count > 0 for count in lines)
    return f"{ran} of {len(lines)} lines ran ({100 * ran // max(len(lines), 1)} %): {path}"


def _on_host(results: Sequence[RunResult]) -> LineCounts:
    """Return the counts of all runs, by the files' paths on the host."""
    return add_up(
        {str(result.folder / file): numbers for file, numbers in result.line_counts.items()}
        for result in results
        if result.folder is not None
    )


def _lcov(counts: LineCounts) -> str:
    lines = ["TN:"]
    for file, numbers in sorted(counts.items()):
        lines.append(f"SF:{file}")
        lines += [f"DA:{number},{count}" for number, count in sorted(numbers.items())]
        lines += [f"LF:{len(numbers)}", f"LH:{sum(count > 0 for count in numbers.values())}", "end_of_record"]
    return "\n".join(lines) + "\n"


def _cobertura(counts: LineCounts, root: str) -> bytes:
    top = ElementTree.Element("coverage", {"version": "kmlab", "timestamp": "0"})
    ElementTree.SubElement(ElementTree.SubElement(top, "sources"), "source").text = root
    package = ElementTree.SubElement(ElementTree.SubElement(top, "packages"), "package", {"name": ""})
    classes = ElementTree.SubElement(package, "classes")
    for file, numbers in sorted(counts.items()):
        name = os.path.relpath(file, root)
        each = ElementTree.SubElement(classes, "class", {"name": name, "filename": name})
        ElementTree.SubElement(each, "methods")
        lines = ElementTree.SubElement(each, "lines")
        for number, count in sorted(numbers.items()):
            ElementTree.SubElement(lines, "line", {"number": str(number), "hits": str(count)})
    return ElementTree.tostring(top)


def _gcovr(path: Path, counts: LineCounts) -> None:
    words = {
        _COBERTURA: ["--cobertura", str(path)],
        _PAGE: ["--html-self-contained", "--html-single-page", "--html-nested", str(path)],
    }.get(path.suffix)
    if words is None:
        path.mkdir(exist_ok=True)
        words = ["--html-details", str(path / "index.html")]
    root = os.path.commonpath([os.path.dirname(file) for file in counts])
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "coverage.xml"
        given.write_bytes(_cobertura(counts, root))
        program = [sys.executable, "-m", "gcovr", "--root", root, "--cobertura-add-tracefile", str(given), *words]
        command.run(program, deadline=Deadline(_PATIENCE), cwd=Path(folder))
