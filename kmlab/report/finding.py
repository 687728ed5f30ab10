"""Turn results into findings for reports, with the one line of a run and places in the sources."""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kmlab.kernel.crash.stack_trace import Frame
from kmlab.kernel.log.records import Record
from kmlab.kernel.symbols.symbolizer import SourceLine, excerpt
from kmlab.run.result import RunResult

_MAKEFILES = ("Kbuild", "Makefile")
_LARGEST_SOURCE = 4 << 20
"""Bytes of a source file that is shown."""
EXPECTATION, CASE = "failed-expectation", "failed-case"
"""The rules of an expectation of a test that does not hold, and of a case that failed without naming one."""
UNMET = "unmet-expectation"
"""The rule of a run that passed or met its outcome, but not all expectations of lab.yaml."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong in the sources, with all the runs that show it."""

    rule: str
    """The crash's class, `compiler-error`, `compiler-warning`, a rule of tests, or the outcome of the run."""
    level: Literal["error", "warning"]
    message: str
    path: str | None
    """From the root of the sources, with slashes; None for a place outside of them."""
    file: str | None = None
    """The same place, relative to the module's folder."""
    line: int | None = None
    column: int | None = None
    fingerprint: str
    """The same for the same finding in another run, also when its line has moved."""
    frames: tuple[Frame, ...] = ()
    """Of a crash, innermost first."""
    results: tuple[RunResult, ...]
    """The runs in which it was seen."""

    @property
    def where(self) -> str:
        """Return the guests that show it, in words."""
        return ", ".join(dict.fromkeys(run_place(result) for result in self.results))


def summary(result: RunResult) -> str:
    """Return one line: the outcome, and what it is about. It is not yet safe to print."""
    about = result.title or result.reason or ""
    return ": ".join(part for part in (result.outcome, about, "; ".join(result.unmet)) if part)


def run_place(result: RunResult) -> str:
    """Return the guest and its kernel, in words."""
    return f"{result.guest} ({result.kernel})" if result.kernel else result.guest


def source_root(results: Sequence[RunResult]) -> Path | None:
    """Return the folder that paths in a report start from: the git repository, else the lab's folder."""
    for result in results:
        if result.folder is not None:
            for folder in (result.folder, *result.folder.parents):
                if (folder / ".git").exists():
                    return folder
            depth = 0 if os.path.isabs(result.source) else len(Path(result.source).parts)
            return result.folder.parents[depth - 1] if 0 < depth <= len(result.folder.parents) else result.folder
    return None


def path_in_sources(result: RunResult, file: str | None, root: Path | None) -> str | None:
    """Return `file`, which is relative to the module's folder, relative to `root`; None if it lies elsewhere.

    Guests and compilers name files. A name that leads out of the sources is no place in them.
    """
    if not file or "\0" in file:
        return None
    source = os.path.relpath(result.folder, root) if result.folder and root else result.source
    own = posixpath.normpath(posixpath.join(source, file))
    if own.startswith(("/", "../")) or own in (".", ".."):
        return None
    if file.startswith(("include/", "arch/")) and not (result.folder and _is_file(result.folder / file)):
        return None  # a header of the kernel's
    return own


def source_lines(result: RunResult, file: str | None, line: int | None, around: int = 3) -> list[SourceLine]:
    """Read the lines around a place in the module's folder; none for a file that lies elsewhere or is no text."""
    if result.folder is None or not file or not line:
        return []
    with contextlib.suppress(OSError, ValueError):
        place = (result.folder / file).resolve()
        if place.is_relative_to(result.folder.resolve()) and _is_file(place):
            with place.open("rb") as stream:
                return excerpt(stream.read(_LARGEST_SOURCE).decode("utf-8", "replace"), line, around)
    return []


def key_records(result: RunResult, count: int) -> tuple[Record, ...]:
    """Return the `count` most useful records of the log: from the first crash on, else the last ones."""
    begins = {crash.time for crash in result.crashes if crash.time is not None}
    first = next((number for number, record in enumerate(result.log) if record.time in begins), None)
    return result.log[-count:] if first is None else result.log[first : first + count]


def findings(results: Sequence[RunResult]) -> list[Finding]:
    """Return what is wrong in the sources, each finding once, with all the runs that have it.

    A run that is as expected has no findings but the compiler's warnings. The lab's own errors are no findings.
    """
    root = source_root(results)
    merged: dict[tuple[object, ...], Finding] = {}
    for result in results:
        if result.outcome == "error":
            continue
        for finding in _findings_of(result, root):
            key = (finding.rule, finding.path, finding.line, finding.fingerprint)
            before = merged.get(key)
            merged[key] = replace(before, results=(*before.results, result)) if before else finding
    return list(merged.values())


def _findings_of(result: RunResult, root: Path | None) -> Iterator[Finding]:
    reported = False
    for crash in () if result.ok else result.crashes:
        reported = True
        yield Finding(
            rule=crash.class_,
            level="warning" if crash.kind == "warning" else "error",
            message=crash.title,
            path=path_in_sources(result, crash.file, root) or _makefile(result, root),
            file=crash.file,
            line=crash.line if crash.file else None,
            fingerprint=crash.fingerprint,
            frames=crash.frames,
            results=(result,),
        )
    for diagnostic in result.diagnostics:
        path = path_in_sources(result, diagnostic.file, root)
        if diagnostic.severity == "warning":
            if path is None:
                continue
        elif result.ok:
            continue
        else:
            reported = True
        rule = EXPECTATION if diagnostic.of_test else f"compiler-{diagnostic.severity}"
        yield Finding(
            rule=rule,
            level=diagnostic.severity,
            message=diagnostic.message,
            path=path or _makefile(result, root),
            file=diagnostic.file,
            line=diagnostic.line if path else None,
            column=diagnostic.column if path else None,
            fingerprint=_digest(rule, path, diagnostic.message),
            results=(result,),
        )
    for message in () if result.ok else _failures_without_place(result):
        reported = True
        yield Finding(
            rule=CASE,
            level="error",
            message=message,
            path=_makefile(result, root),
            fingerprint=_digest(CASE, result.module, message),
            results=(result,),
        )
    if not result.ok and not reported:
        rule = UNMET if result.outcome in result.expect.outcome or result.outcome == "pass" else result.outcome
        message = summary(result) if result.outcome != "pass" or result.unmet else _missed(result)
        yield Finding(
            rule=rule,
            level="error",
            message=f"{result.module}: {message}",
            path=_makefile(result, root),
            fingerprint=_digest(rule, result.module, result.failure or ""),
            results=(result,),
        )


def _failures_without_place(result: RunResult) -> Iterator[str]:
    """Return a sentence for each case that failed and names no line, and for each problem of the test output."""
    for case in result.tests.cases:
        if case.bad and not case.expectations:
            yield f"{result.module}: {case.full_name} {case.status}" + (f": {case.reason}" if case.reason else "")
    yield from (f"{result.module}: {problem}" for problem in result.tests.problems)


def _missed(result: RunResult) -> str:
    return f"the run passed, but lab.yaml expects {' or '.join(result.expect.outcome)}"


def _makefile(result: RunResult, root: Path | None) -> str | None:
    """Return the module's makefile or folder, for what belongs to no line: code scanning wants a place."""
    makefiles = (name for name in _MAKEFILES if result.folder is not None and _is_file(result.folder / name))
    return path_in_sources(result, next(makefiles, "."), root)


def _is_file(path: Path) -> bool:
    """Return whether it is a regular file: opening a pipe could wait for ever."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "backslashreplace")).hexdigest()[:16]
