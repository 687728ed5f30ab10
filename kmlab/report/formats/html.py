"""Write a report as one self-contained HTML page: verdicts, guilty lines, kernel logs and timelines.

Everything is an element of a tree, and all text goes through `_add`: nothing that a guest says can become a tag. The
page loads nothing, and its Content-Security-Policy lets no script but its own run
(https://html.spec.whatwg.org/multipage/, https://www.w3.org/TR/CSP3/).
"""

from __future__ import annotations

import base64
import hashlib
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from kmlab import __version__
from kmlab.common.events import printable
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.log.records import LEVELS, Record
from kmlab.kernel.log.taint import taint_meaning, taint_names
from kmlab.report import grid
from kmlab.report.case_lines import case_about, counts
from kmlab.report.finding import source_lines
from kmlab.report.timeline import bars
from kmlab.run.result import WORST_LAST, RunResult

_HOME = Path(__file__).parent
_LONGEST = 2000
"""The most characters of one text."""
_RECORDS = 1000
"""The most records of one run's log."""
_ALL_RECORDS = 40_000
"""The most records of all runs: a browser must be able to hold the page."""
_FRAMES, _DIAGNOSTICS, _EXCERPTS, _CASES = 24, 40, 3, 500
_SERIOUS = LEVELS[: LEVELS.index("warn")]


def text(results: Sequence[RunResult]) -> str:
    """Return the page."""
    wrong = [result for result in results if not result.ok]
    page, style, script = ET.Element("html", lang="en"), _asset("page.css"), _asset("page.js")
    head, body = _add(page, "head"), _add(page, "body")
    _add(head, "meta", charset="utf-8")
    _add(head, "meta", http_equiv="Content-Security-Policy", content=_policy(script))
    _add(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    _add(head, "meta", name="color-scheme", content="light dark")
    _add(head, "title", f"{'✗' if wrong else '✓'} kmlab: {_sentence(results, wrong)}")
    # The page's own files are the only text that is not escaped: the browser needs them unchanged.
    ET.SubElement(head, "style").text = style
    _header(_add(body, "header"), results, wrong)
    main = _add(body, "main")
    if len(results) > 1:
        _grid(main, results)
        _filters(main, results)
    runs = _add(main, "section", class_="runs")
    _add(runs, "h2", "Runs" if len(results) != 1 else "The run")
    limit = max(20, min(_RECORDS, _ALL_RECORDS // max(1, len(results))))
    for number, result in enumerate(results):
        _run(runs, result, f"run-{number}", limit, opened=not result.ok or len(results) == 1)
    _add(body, "footer", f"Written by kmlab {__version__}, {time.strftime('%Y-%m-%d %H:%M %z')}.")
    ET.SubElement(body, "script").text = script
    return f"<!doctype html>\n{ET.tostring(page, encoding='unicode', method='html')}\n"


# --- the whole -----------------------------------------------------------------------------------------------------


def _header(header: ET.Element, results: Sequence[RunResult], wrong: Sequence[RunResult]) -> None:
    title = _add(header, "h1", class_="bad" if wrong else "good")
    _add(title, "span", "✗" if wrong else "✓", class_="sign", aria_hidden="true")
    _add(title, "span", _sentence(results, wrong))
    modules, guests = {r.module for r in results}, {r.guest for r in results}
    spent = _seconds(sum(r.seconds for r in results))
    about = f"kmlab · {_count(len(modules), 'module')} in {_count(len(guests), 'guest')}, {spent}"
    _add(header, "p", about, class_="about")
    if len(results) == 1:
        return
    tiles = _add(header, "ul", class_="tiles")
    counts = Counter((r.outcome, r.ok) for r in results)
    for outcome, ok in sorted(counts, key=lambda key: (key[1], -WORST_LAST.index(key[0]))):
        tile = _add(tiles, "li", class_=_tone(outcome, ok))
        _add(tile, "b", str(counts[outcome, ok]))
        _add(tile, "span", f"{_sign(ok)} {outcome}" + (" (as expected)" if ok and outcome != "pass" else ""))


def _sentence(results: Sequence[RunResult], wrong: Sequence[RunResult]) -> str:
    if len(results) == 1:
        (only,) = results
        return f"{only.module} on {only.guest}: {only.outcome}{_verdict_words(only.ok)}"
    if wrong:
        return f"{len(wrong)} of {_count(len(results), 'run')} not as expected"
    return f"all {_count(len(results), 'run')} as expected" if results else "no runs"


def _grid(main: ET.Element, results: Sequence[RunResult]) -> None:
    page = grid.grid_of(results)
    numbers = {(result.module, result.guest): number for number, result in enumerate(results)}
    section = _add(main, "section", class_="grid")
    _add(section, "h2", "Modules and kernels")
    table = _add(_add(section, "div", class_="wide", tabindex="0"), "table")
    heads = _add(_add(table, "thead"), "tr")
    _add(heads, "th", "module", scope="col")
    for column in page.columns:
        head = _add(heads, "th", scope="col")
        _add(head, "span", column.guest)
        _add(head, "small", column.kernel or "not reached")
    rows = _add(table, "tbody")
    for module in page.modules:
        row = _add(rows, "tr")
        _add(row, "th", module, scope="row")
        for column in page.columns:
            run = page.cells.get((module, column.guest))
            if run is None:
                _add(row, "td", "–", class_="none", title="did not run here")
                continue
            cell = _add(row, "td", class_=_tone(run.outcome, run.ok))
            _add(
                cell,
                "a",
                f"{_sign(run.ok)} {run.outcome}",
                href=f"#run-{numbers[module, column.guest]}",
                title=run.title,
            )
    causes = [group for group in page.groups if not group.ok] + [group for group in page.groups if group.ok]
    if causes:
        _add(section, "h3", "What is behind it")
        listed = _add(section, "ul", class_="causes")
        for group in causes:
            item = _add(listed, "li", class_=_tone(group.outcome, group.ok))
            _add(item, "span", _sign(group.ok), class_="sign")
            _add(item, "b", ", ".join(group.modules[:8]) + (" …" if len(group.modules) > 8 else ""))
            _add(item, "span", f"{group.sentence}{' (as expected)' if group.ok else ''}")


def _filters(main: ET.Element, results: Sequence[RunResult]) -> None:
    """Add the controls of the page's script; without the script the form stays hidden, and all runs are visible."""
    form = _add(main, "form", class_="filters", hidden="hidden", aria_label="Filter the runs")
    _add(form, "input", type="search", name="find", placeholder="Find module, kernel, title …", aria_label="Find")
    outcomes = [outcome for outcome in reversed(WORST_LAST) if any(r.outcome == outcome for r in results)]
    for name, what, words in (
        ("outcome", "every outcome", outcomes),
        ("guest", "every guest", list(dict.fromkeys(r.guest for r in results))),
    ):
        select = _add(form, "select", name=name, aria_label=name)
        _add(select, "option", what, value="")
        for word in words:
            _add(select, "option", word, value=word)
    for name, what in (("wrong", "only what is not as expected"), ("serious", "in logs, warnings and worse only")):
        label = _add(form, "label")
        _add(label, "input", type="checkbox", name=name)
        _add(label, "span", what)
    _add(form, "button", "Open all", type="button", name="open")
    _add(form, "button", "Close all", type="button", name="close")
    _add(form, "output", aria_live="polite")


# --- one run -------------------------------------------------------------------------------------------------------


def _run(section: ET.Element, result: RunResult, name: str, limit: int, *, opened: bool) -> None:
    run = _add(
        section,
        "details",
        id=name,
        class_=f"run {_tone(result.outcome, result.ok)}",
        open="open" if opened else None,
        data_outcome=result.outcome,
        data_guest=result.guest,
        data_ok="yes" if result.ok else "no",
    )
    line = _add(run, "summary")
    _add(line, "span", f"{_sign(result.ok)} {result.outcome}", class_="badge")
    _add(line, "b", result.module)
    _add(line, "span", f"on {result.guest}", class_="guest")
    _add(line, "small", result.kernel or "")
    _add(line, "span", result.title if result.outcome != "pass" else "", class_="what")
    _add(line, "small", _seconds(result.seconds), class_="time")
    _verdict(run, result)
    for crash in result.crashes:
        _crash(run, result, crash)
    _cases(run, result)
    _diagnostics(run, result)
    _timeline(run, result)
    _facts(run, result)
    _log(run, result, limit, opened=opened)


def _verdict(run: ET.Element, result: RunResult) -> None:
    expected = " or ".join(result.expect.outcome)
    verdict = _verdict_words(result.ok).strip(" ()").capitalize()
    other = "" if result.outcome in result.expect.outcome else f": lab.yaml expects {expected}"
    _add(run, "p", f"{verdict}{other}.", class_="verdict")
    for sentence in (*result.unmet, *([result.reason] if result.reason else [])):
        _add(run, "p", sentence, class_="reason")


def _crash(run: ET.Element, result: RunResult, crash: Crash) -> None:
    block = _add(run, "section", class_="finding")
    _add(block, "h3", crash.title)
    about = [crash.class_, f"in {crash.function}()" if crash.function else "", _at(crash.file, crash.line)]
    about += [
        f"task {crash.task}" if crash.task else "",
        "its log is incomplete" if crash.truncated else "",
    ]
    _add(block, "p", " · ".join(filter(None, about)), class_="about")
    _source(block, result, crash.file, crash.line)
    frames = [frame for frame in crash.frames if frame.reliable]
    if frames:
        listed = _add(block, "ol", class_="frames")
        for frame in frames[:_FRAMES]:
            item = _add(listed, "li", class_="own" if frame.file and frame.own else None)
            _add(item, "code", f"{frame.function}()")
            _add(item, "span", f"[{frame.module}]" if frame.module else "")
            _add(item, "span", _at(frame.file, frame.line) + (" inlined" if frame.inlined else ""))
        if len(frames) > _FRAMES:
            _add(block, "p", f"{len(frames) - _FRAMES} more frames", class_="about")


def _cases(run: ET.Element, result: RunResult) -> None:
    tests = result.tests
    if not tests:
        return
    block = _add(run, "section", class_="finding")
    _add(block, "h3", "Test cases")
    _add(block, "p", counts(tests), class_="about")
    for problem in tests.problems:
        _add(block, "p", problem, class_="reason")
    shown = sorted(tests.cases, key=lambda case: not case.bad)[:_CASES]
    for case in shown:
        line = _add(block, "p", class_=f"diagnostic {'bad' if case.bad else 'calm'}")
        _add(line, "b", f"{_sign(not case.bad)} {case.status}")
        _add(line, "code", case.full_name)
        _add(line, "span", case_about(case).removeprefix(": "))
    if len(tests.cases) > len(shown):
        _add(block, "p", f"{len(tests.cases) - len(shown)} more are in result.json", class_="about")


def _diagnostics(run: ET.Element, result: RunResult) -> None:
    if not result.diagnostics:
        return
    block = _add(run, "section", class_="finding")
    of_test = all(diagnostic.of_test for diagnostic in result.diagnostics)
    _add(block, "h3", "Expectations that do not hold" if of_test else "What the compiler says")
    shown = sorted(result.diagnostics, key=lambda diagnostic: diagnostic.severity != "error")[:_DIAGNOSTICS]
    for number, diagnostic in enumerate(shown):
        line = _add(block, "p", class_=f"diagnostic {'bad' if diagnostic.severity == 'error' else 'warn'}")
        _add(line, "b", diagnostic.severity)
        _add(line, "code", _place(diagnostic))
        _add(line, "span", diagnostic.message)
        if number < _EXCERPTS:
            _source(block, result, diagnostic.file, diagnostic.line, around=2)
    if len(result.diagnostics) > len(shown):
        _add(block, "p", f"{len(result.diagnostics) - len(shown)} more are in build.log", class_="about")


def _source(block: ET.Element, result: RunResult, file: str | None, line: int | None, around: int = 4) -> None:
    lines = source_lines(result, file, line, around)
    if not lines:
        return
    _add(block, "p", f"{result.source}/{_at(file, line)}", class_="file")
    table = _add(block, "div", class_="source", tabindex="0")
    for each in lines:
        row = _add(table, "div", class_="marked" if each.marked else None)
        _add(row, "span", "▶" if each.marked else "", class_="sign")
        _add(row, "span", str(each.number), class_="number")
        _add(row, "code", each.text)


def _timeline(run: ET.Element, result: RunResult) -> None:
    all_bars = bars(result)
    whole = max([result.seconds, *(bar.began + bar.seconds for bar in all_bars)], default=0.0)
    if not result.steps or whole <= 0:
        return
    _add(run, "h3", "Where the time went")
    outcomes = {step.name: step.outcome for step in result.steps}
    table = _add(run, "div", class_="timeline", role="table")
    for bar in all_bars:
        state = outcomes.get(bar.label, "beside")
        row = _add(table, "div", class_=state if state in ("ok", "beside", "skipped") else "failed", role="row")
        _add(row, "span", bar.label + (f" ✗ {state}" if state not in ("ok", "beside", "skipped") else ""), role="cell")
        track = _add(row, "span", class_="track", role="presentation")
        left, width = 100 * bar.began / whole, max(100 * bar.seconds / whole, 0.4)
        _add(track, "i", style=f"left:{min(left, 99.6):.2f}%;width:{min(width, 100 - min(left, 99.6)):.2f}%")
        _add(row, "span", _seconds(bar.seconds), role="cell")


def _facts(run: ET.Element, result: RunResult) -> None:
    block = _add(run, "details", class_="facts")
    _add(block, "summary", "Facts")
    facts = _add(block, "dl")
    for name, value in _run_command(result):
        _add(facts, "dt", name)
        _add(facts, "dd", value)


def _run_command(result: RunResult) -> Iterator[tuple[str, str]]:
    yield "source", result.source
    yield "kernel", result.kernel or "never reached"
    yield "the guest", "lives" if result.guest_survived else "had to be stopped"
    for bit, step in sorted(result.tainted_by.items()):
        (name,) = taint_names(1 << bit)
        yield f"taint {name}", f"{taint_meaning(name)} ({step if step == 'afterwards' else f'by {step}'})"
    if result.failure:
        yield "failure", result.failure
    for crash in result.crashes:
        yield "fingerprint", crash.fingerprint
    if result.directory:
        files = [name for name in (result.console, result.kernel_log, result.build_log, result.vmcore) if name]
        yield "evidence", f"{result.directory}" + (f" ({', '.join(files)})" if files else "")


def _log(run: ET.Element, result: RunResult, limit: int, *, opened: bool) -> None:
    if not result.log:
        return
    first = limit // 3
    whole = len(result.log) <= limit
    shown = result.log if whole else (*result.log[:first], *result.log[first - limit :])
    block = _add(run, "details", class_="log", open="open" if opened else None)
    _add(block, "summary", f"Kernel log, {_count(len(result.log), 'record')}")
    table = _add(block, "div", class_="records", tabindex="0")
    begins = {crash.time for crash in result.crashes if crash.time is not None}
    for number, record in enumerate(shown):
        if not whole and number == first:
            _add(
                table,
                "p",
                f"… {len(result.log) - len(shown)} records are left out; dmesg.txt has all …",
                class_="about",
            )
        _record(table, record, marked=record.time in begins)
        begins.discard(record.time)
    if result.lost_records:
        _add(table, "p", f"{_count(result.lost_records, 'record')} of a flood are not kept", class_="about")


def _record(table: ET.Element, record: Record, *, marked: bool) -> None:
    level = record.level if record.level in LEVELS else ""
    tone = "bad" if level in _SERIOUS else "warn" if level == "warn" else "calm"
    row = _add(table, "div", class_=f"{tone} marked" if marked else tone)
    _add(row, "span", f"{record.time:.6f}" if record.time is not None else "")
    _add(row, "span", level)
    _add(row, "code", record.text)


# --- words and elements --------------------------------------------------------------------------------------------


def _add(parent: ET.Element, tag: str, content: str | None = None, /, **attributes: str | None) -> ET.Element:
    """Add an element. Its text and attributes are made printable here, and escaped when the tree is written."""
    element = ET.SubElement(parent, tag)
    if content:
        element.text = printable(content, _LONGEST)
    for name, value in attributes.items():
        if value is not None:
            element.set(name.rstrip("_").replace("_", "-"), printable(value, _LONGEST))
    return element


def _asset(name: str) -> str:
    return (_HOME / name).read_text("utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = ("default-src 'none'", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'")
    return "; ".join((*allowed, "base-uri 'none'", "form-action 'none'"))


def _tone(outcome: str, ok: bool) -> str:
    if ok:
        return "good" if outcome == "pass" else "known"
    return "lab" if outcome == "error" else "warn" if outcome == "warning" else "bad"


def _sign(ok: bool) -> str:
    return "✓" if ok else "✗"


def _verdict_words(ok: bool) -> str:
    return " (as expected)" if ok else " (not as expected)"


def _at(file: str | None, line: int | None) -> str:
    return ":".join(str(part) for part in (file, line) if part is not None)


def _place(diagnostic: Diagnostic) -> str:
    return ":".join(str(p) for p in (diagnostic.file, diagnostic.line, diagnostic.column) if p is not None)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
