"""Write the reports of a command's runs, as files for other programs and for people.

A format is one file in this package with a function `text(results)`, and one line in FORMATS. `kmlab run` and
`kmlab test` offer every format of the table as `--report FILE`; the ending of the file's name chooses one.
"""

from __future__ import annotations

import errno
import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from kmlab.common import paths as store
from kmlab.common.errors import ConfigError, KmlabError, LabError
from kmlab.common.events import printable
from kmlab.run.documents import RunDocument, RunKeys
from kmlab.run.result import RunResult


class Format(NamedTuple):
    """One report format."""

    name: str
    """The name of its file in this package, imported when such a report is written."""
    endings: tuple[str, ...]
    """Endings of file names that select this format; the longest matching one wins."""
    title: str
    """Its name for people."""
    streams: bool = False
    """Whether results are appended as they arrive. Then the file has a function `line(result)`, too."""


FORMATS: tuple[Format, ...] = (
    Format("junit", (".xml",), "JUnit"),
    Format("tap", (".tap",), "TAP 14"),
    Format("sarif", (".sarif", ".sarif.json"), "SARIF 2.1.0"),
    Format("gitlab", ("codequality.json", "code-quality-report.json"), "GitLab code quality"),
    Format("markdown", (".md",), "Markdown"),
    Format("html", (".html", ".htm"), "HTML"),
    Format("jsonl", (".jsonl",), "JSON Lines", streams=True),
    Format("document", (".json",), "JSON"),
)


class Writer(Protocol):
    """The functions of a format's file."""

    def text(self, results: Sequence[RunResult]) -> str:
        """Return the whole report: text that UTF-8 can hold, whatever a guest said."""

    def line(self, result: RunResult) -> str:
        """Return one result as a line, in a format that streams."""


class ReportFile(NamedTuple):
    """One report to write."""

    path: Path
    format: Format
    option: str
    """The option that requested it, for errors."""


def report_files(paths: Sequence[Path], junit: Path | None = None) -> tuple[ReportFile, ...]:
    """Return the reports that `--report` and `--junit` ask for; ConfigError where one cannot be written.

    Call it before the runs: a mistake in a name must not cost an hour of guests.
    """
    files = [ReportFile(path, format_of(path), "--report") for path in paths]
    if junit is not None:
        files.append(ReportFile(junit, FORMATS[0], "--junit"))
    places: dict[Path, ReportFile] = {}
    for file in files:
        _check_writable(file)
        place = Path(os.path.realpath(file.path))
        if place in places:
            raise ConfigError(f"{_called(file)}: two reports would be written to this file", "give each its own name")
        places[place] = file
    return tuple(files)


def format_of(path: Path) -> Format:
    """Return the format that the ending of a name asks for; ConfigError with all endings if there is none."""
    fitting = [(len(ending), f) for f in FORMATS for ending in f.endings if path.name.lower().endswith(ending)]
    if not fitting:
        known = ", ".join(f"{f.endings[0]} ({f.title})" for f in FORMATS)
        raise ConfigError(f"--report {printable(str(path))}: no report has this ending", f"known endings: {known}")
    return max(fitting, key=lambda found: found[0])[1]


def writer(chosen: Format) -> Writer:
    """Import the file of a format."""
    return cast(Writer, importlib.import_module(f"{__name__}.{chosen.name}"))


class Reports:
    """The reports of one command: created before its runs, extended as results arrive, and written at the end.

    `keys` are keys of the JSON document beside the results, such as the shard.
    """

    def __init__(self, files: Sequence[ReportFile], keys: RunKeys | RunDocument | None = None) -> None:
        self._files = tuple(files)
        self._keys = keys
        self._broken: set[Path] = set()
        """Streamed files that could not be appended to: they are written whole at the end."""
        for file in self._files:
            if file.format.streams:
                try:
                    store.write_text(file.path, "")
                except LabError as error:
                    raise ConfigError(f"{_called(file)}: {error.message}", error.hint) from None

    def add(self, result: RunResult) -> None:
        """Append a result to the reports that show results as they arrive."""
        for file in self._files:
            if file.format.streams:
                try:
                    with file.path.open("a", encoding="utf-8") as stream:
                        stream.write(writer(file.format).line(result))
                except OSError:
                    self._broken.add(file.path)

    def finish(self, results: Sequence[RunResult]) -> list[KmlabError]:
        """Write all reports. Return what went wrong: the verdicts must be shown all the same."""
        problems: list[KmlabError] = []
        for file in self._files:
            if file.format.streams and file.path not in self._broken:
                continue
            try:
                store.write_text(file.path, self._text(file.format, results))
            except LabError as error:
                problems.append(error)
        return problems

    def _text(self, chosen: Format, results: Sequence[RunResult]) -> str:
        if chosen.name == "document" and self._keys is not None:
            from kmlab.report.formats import document

            return document.with_keys(results, self._keys)
        return writer(chosen).text(results)


def _check_writable(file: ReportFile) -> None:
    there = next(folder for folder in file.path.absolute().parents if folder.exists())
    try:
        if file.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        # Try it: permissions allow a superuser to write everywhere, but /proc does not.
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        hint = "give a file in a folder of yours"
        raise ConfigError(f"{_called(file)}: cannot be written: {error.strerror}", hint) from None


def _called(file: ReportFile) -> str:
    return f"{file.option} {printable(str(file.path))}"
