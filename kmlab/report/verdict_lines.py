"""Say in lines what a run came to: the kernel's words, the findings with their source lines, and the verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kmlab.common import folder_tree
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.stack_trace import Section
from kmlab.kernel.log.taint import taint_meaning, taint_names
from kmlab.kernel.symbols.symbolizer import excerpt
from kmlab.report.case_lines import case_lines, counts
from kmlab.run.result import RunResult

_LOG_SHOWN = 30
_DIAGNOSTICS_SHOWN = 20
_LARGEST_SHOWN = 4 << 20
"""Bytes of a source file that are read for an excerpt."""
_TRUNCATED = "(its log is incomplete)"


def verdict_lines(result: RunResult, *, verbose: bool = False, verdict_first: bool = False) -> Iterator[str]:
    """Return a run for people: what the kernel reported, the findings, and the verdict. Not yet safe to print."""
    if verdict_first:
        yield headline(result)
    yield from kernel_lines(result, verbose)
    yield from case_lines(result.tests)
    yield from finding_lines(result)
    if not verdict_first:
        yield headline(result)
    yield from evidence(result)


def kernel_lines(result: RunResult, verbose: bool) -> Iterator[str]:
    """Return the kernel's own words: of a crash the first line of its report, or all of it; else the log's end."""
    where = f"{_near(result.directory)}/dmesg.txt"
    report = [line for crash in result.crashes for line in crash.text.splitlines()]
    if result.crashes:
        yield from (f"  {line}" for line in (report if verbose else report[:1]))
        more = "" if verbose or len(report) < 2 else f" ({len(report) - 1} more lines of the crash log; -v shows them)"
        if result.directory:
            yield f"  kernel log: {where}{more}"
    else:
        log = [record for record in result.log if record.from_kernel]
        if len(log) > _LOG_SHOWN:
            yield f"  ({len(log) - _LOG_SHOWN} earlier records; {where} has all of them)"
        for record in log[-_LOG_SHOWN:]:
            stamp = f"[{record.time:12.6f}] " if record.time is not None else ""
            yield f"  {stamp}{record.text}"
    if result.lost_records:
        yield f"  ({result.lost_records} records of a flood are not kept)"


def evidence(result: RunResult) -> Iterator[str]:
    """Return the line that names the evidence folder, unless the run passed."""
    if result.outcome != "pass" and result.directory:
        yield f"  evidence: {_near(result.directory)}"


def finding_lines(result: RunResult, frames: int = 12) -> Iterator[str]:
    """Return the lines about the findings, with at most `frames` frames of each crash; without the verdict's words.

    The crashes come last, next to the verdict.
    """
    for diagnostic in result.diagnostics[:_DIAGNOSTICS_SHOWN]:
        yield f"  {_opened_at(diagnostic, result)}: {diagnostic.severity}: {diagnostic.message}"
        if diagnostic.of_test:
            yield from _excerpt_lines(result.folder, diagnostic.file, diagnostic.line, around=2)
    if len(result.diagnostics) > _DIAGNOSTICS_SHOWN:
        yield f"  ({len(result.diagnostics) - _DIAGNOSTICS_SHOWN} more; {_near(result.directory)}/build.log has all)"
    title = result.title or ""
    yield from (f"  {sentence}" for sentence in result.unmet if sentence != title)
    if rest := (result.reason or "").removeprefix(title).lstrip("; "):
        yield f"  {rest}"
    yield from _taint(result)
    for crash in result.crashes:
        if len(result.crashes) > 1 or crash.title != title:
            yield crash_line(crash)
        elif crash.truncated:
            yield f"  {_TRUNCATED}"
        yield from crash_lines(crash, result.folder, frames)
    yield from (f"  {note}" for note in result.notes)


def _opened_at(diagnostic: Diagnostic, result: RunResult) -> str:
    """Return file, line and column as an editor opens them; a kernel header is not in the module's folder."""
    if diagnostic.file is None:
        return result.source
    own = result.folder and (result.folder / diagnostic.file).exists()
    header = not own and diagnostic.file.startswith(("include/", "arch/"))
    file = diagnostic.file if header else f"{result.source}/{diagnostic.file}"
    return ":".join(str(part) for part in (file, diagnostic.line, diagnostic.column) if part is not None)


def _near(path: Path | None) -> str:
    """Return a path as one would type it here."""
    with contextlib.suppress(ValueError, OSError):
        return str(path and path.relative_to(Path.cwd()))
    return str(path)


def _taint(result: RunResult) -> Iterator[str]:
    """Return the taint bits that the run set, without those that every out-of-tree module sets."""
    for bit, step in sorted(result.tainted_by.items()):
        (name,) = taint_names(1 << bit)
        if name not in ("OOT_MODULE", "UNSIGNED_MODULE"):
            yield f"  taint {name}, set {step if step == 'afterwards' else f'by {step}'}: {taint_meaning(name)}"


def headline(result: RunResult) -> str:
    """Return the verdict in one line."""
    place = _place(result.crashes[0]) if result.crashes else ""
    about = f": {result.title}{place}" if result.title else ""
    if not about and result.tests:
        about = f": {counts(result.tests)}"
    judged = "" if result.outcome == "pass" and result.ok else " (as expected)" if result.ok else " (NOT as expected)"
    if not result.ok and result.outcome not in result.expect.outcome:
        judged = f" (NOT as expected: {' or '.join(result.expect.outcome)})"
    where = f"{result.module} on {result.guest}" + (f" ({result.kernel})" if result.kernel else "")
    return f"{result.outcome.upper()}  {where}{about}{judged}  {result.seconds:.1f} s"


def _place(crash: Crash) -> str:
    place = ":".join(str(part) for part in (crash.file, crash.line) if part is not None)
    return f" at {place}" if crash.file else ""


def crash_line(crash: Crash) -> str:
    return f"  {crash.kind}: {crash.title}{_place(crash)}" + (f" {_TRUNCATED}" if crash.truncated else "")


def crash_lines(crash: Crash, source: Path | None, frames: int) -> Iterator[str]:
    """Return the frames of a crash, the source lines around it, and those of its other stacks."""
    for frame in [f for f in crash.frames if f.reliable][:frames]:
        where = ":".join(str(part) for part in (frame.file, frame.line) if part is not None)
        module = f"[{frame.module}]" if frame.module else ""
        inlined = " (inlined)" if frame.inlined else ""
        yield f"    {frame.shown} {module} {where}{inlined}".rstrip()
    shown = {(crash.file, crash.line)}
    yield from _excerpt_lines(source, crash.file, crash.line, around=2)
    for section in crash.sections:
        place = section.place(crash.module)
        if place is None or place.file is None or not place.own or (place.file, place.line) in shown:
            continue
        shown.add((place.file, place.line))
        yield f"    {_section_title(section)} in {place.name} at {place.file}:{place.line}"
        yield from _excerpt_lines(source, place.file, place.line, around=0)


def _section_title(section: Section) -> str:
    """Return what another stack is about: what its task did, and who that was."""
    by = section.task or (f"task {section.pid}" if section.pid is not None else "")
    return f"{section.name} by {by}" if by and not section.name.startswith(("task ", "cpu ")) else section.name


def _excerpt_lines(source: Path | None, place: str | None, line: int | None, around: int) -> Iterator[str]:
    """Return the source lines around a place, that one marked."""
    if not source or not place or not line:
        return

    # Before Python 3.13, a circle of links is a RuntimeError.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        # The file's name comes from the guest: never show a file from elsewhere, and never wait for a pipe.
        file = (source / place).resolve()
        if not file.is_relative_to(source.resolve()):
            return
        with folder_tree.opened(file.parent) as folder:
            content = folder_tree.read_file(folder, file.name, _LARGEST_SHOWN) or b""
        for shown in excerpt(content.decode("utf-8", "replace"), line, around):
            yield f"    {'>' if shown.marked else ' '} {shown.number:4}  {shown.text}"
