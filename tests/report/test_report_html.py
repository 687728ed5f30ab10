"""The page of a report: complete in itself, readable without colour, and safe whatever a guest said."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest

import kmlab.report.formats
from kmlab.common.events import Part
from kmlab.config.lab import Expect
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.log.records import Record
from kmlab.report.formats import html
from kmlab.run.context.results import StepResult
from kmlab.run.result import RunResult
from tests.report.test_report import BAD, BROKEN, GOOD, HOSTILE
from tests.report.test_report_findings import crashed, repository  # noqa: F401
from tests.story import whole_result

VOID = {"meta", "input", "br", "hr", "link", "img", "base"}


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str]
    texts: list[str]
    """All text within, also that of the elements below."""

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def has(self, name: str) -> bool:
        return name in self.attributes.get("class", "").split()


class Page(HTMLParser):
    """The elements of a page, whose tags must all be closed in their order."""

    def __init__(self, *results: RunResult) -> None:
        super().__init__()
        self.source = html.text(results)
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.texts.append(f"{data} ")

    def all(self, tag: str, class_: str | None = None) -> list[Element]:
        return [e for e in self.elements if e.tag == tag and (class_ is None or e.has(class_))]

    def one(self, tag: str, class_: str | None = None) -> Element:
        (found,) = self.all(tag, class_)
        return found


# --- what stands there ---------------------------------------------------------------------------------------------


def test_the_heading_says_what_the_command_came_to() -> None:
    assert Page(GOOD, BAD, BROKEN).one("h1").text == "✗ 2 of 3 runs not as expected"
    assert Page(GOOD, GOOD).one("h1").text == "✓ all 2 runs as expected"
    assert Page(BAD).one("h1").text == "✗ null on debian: oops (not as expected)"
    assert Page().one("h1").text == "✓ no runs"


def test_a_run_shows_its_guilty_line_marked_by_more_than_colour(repository: Path) -> None:  # noqa: F811
    page = Page(crashed(repository))
    assert page.one("p", "file").text == "examples/oops/oops.c:27"
    rows = [element.text for element in page.all("div") if re.match(r"(▶ )?\d+ line \d+$", element.text)]
    assert rows == ["23 line 23", "24 line 24", "25 line 25", "26 line 26", "▶ 27 line 27"] + [
        f"{number} line {number}" for number in range(28, 32)
    ]
    assert page.one("li", "own").text == "null_read() [oops] oops.c:27"


def test_what_the_compiler_says_stands_by_its_line(repository: Path) -> None:  # noqa: F811
    said = (Diagnostic("oops.c", 9, 1, "warning", "unused"), Diagnostic("oops.c", 12, 6, "error", "no such thing"))
    page = Page(crashed(repository, outcome="build-failed", crashes=(), diagnostics=said))
    assert [element.text for element in page.all("p", "diagnostic")] == [
        "error oops.c:12:6 no such thing",
        "warning oops.c:9:1 unused",
    ]
    assert "▶ 12 line 12" in [element.text for element in page.all("div", "marked")]


def test_the_picture_of_modules_and_kernels_leads_to_the_runs() -> None:
    page = Page(GOOD, dataclasses.replace(GOOD, guest="noble", kernel="6.8.0"), BAD)
    assert [head.text for head in page.all("th")] == ["module", "debian not reached", "noble 6.8.0", "hello", "null"]
    cells = [element for element in page.all("td")]
    assert [cell.text for cell in cells] == ["✓ pass", "✓ pass", "✗ oops", "–"]
    ids = {element.attributes["id"] for element in page.all("details", "run")}
    assert [link.attributes["href"] for link in page.all("a")] == ["#run-0", "#run-1", "#run-2"]
    assert {link.attributes["href"][1:] for link in page.all("a")} == ids


def test_runs_can_be_filtered_by_outcome_guest_and_expectation() -> None:
    page = Page(
        GOOD, dataclasses.replace(GOOD, guest="noble"), dataclasses.replace(BAD, expect=Expect(outcome=("oops",)))
    )
    assert "hidden" in page.one("form").attributes, "until the script that filters has run"
    assert [option.attributes["value"] for option in page.all("option")] == ["", "oops", "pass", "", "debian", "noble"]
    assert [
        (run.attributes["data-outcome"], run.attributes["data-guest"], run.attributes["data-ok"])
        for run in page.all("details", "run")
    ] == [("pass", "debian", "yes"), ("pass", "noble", "yes"), ("oops", "debian", "yes")]
    assert page.all("form") and not Page(GOOD).all("form"), "one run needs no filter"


def test_only_what_is_not_as_expected_is_open() -> None:
    runs = Page(GOOD, BAD, dataclasses.replace(BAD, expect=Expect(outcome=("oops",)))).all("details", "run")
    assert ["open" in run.attributes for run in runs] == [False, True, False]


def test_the_log_names_each_level_and_marks_where_the_crash_begins(repository: Path) -> None:  # noqa: F811
    (crash,) = whole_result().crashes
    log = [Record(n / 10, level, f"text {n}", None, 0) for n, level in enumerate(("info", "warn", "alert", None))]
    result = crashed(repository, crashes=(dataclasses.replace(crash, time=0.2),), log=tuple(log))
    rows = [
        element for element in Page(result).all("div") if re.search(r"text \d$", element.text) and element.texts[1:]
    ]
    rows = [row for row in rows if row.attributes.get("class", "").split()[:1] in (["calm"], ["warn"], ["bad"])]
    assert [(row.text, row.attributes["class"]) for row in rows] == [
        ("0.000000 info text 0", "calm"),
        ("0.100000 warn text 1", "warn"),
        ("0.200000 alert text 2", "bad marked"),
        ("0.300000 text 3", "calm"),
    ]


def test_the_time_is_drawn_step_by_step_and_a_step_that_failed_says_so() -> None:
    steps = (StepResult("sync", "ok", 0.5, "", 0.5), StepResult("load", "hang", 1.0, "", 1.0))
    page = Page(dataclasses.replace(BAD, steps=steps, guest_parts=(Part("restore", 0.0, 0.5),), seconds=2.0))
    assert [bar.attributes["style"] for bar in page.all("i")] == [
        "left:0.00%;width:25.00%",
        "left:25.00%;width:25.00%",
        "left:50.00%;width:50.00%",
    ]
    assert "load ✗ hang 1.00 s" in [element.text for element in page.all("div", "failed")]


def test_the_facts_name_what_tainted_the_kernel_and_where_the_evidence_is() -> None:
    result = dataclasses.replace(BAD, tainted_by={7: "exercise"}, directory=Path("/runs/1"), console="console.log")
    facts = Page(result).one("dl").text
    assert "taint DIE" in facts and "(by exercise)" in facts and "/runs/1 (console.log)" in facts


# --- complete in itself --------------------------------------------------------------------------------------------


def test_the_page_loads_nothing() -> None:
    page = Page(GOOD, BAD)
    for element in page.elements:
        assert not {"src", "srcset", "action", "data", "background", "poster"} & set(element.attributes), element
        assert element.attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import|https?:", page.one("style").text + page.one("script").text)


def test_the_policy_lets_the_pages_own_script_run_and_no_other() -> None:
    page = Page(BAD)
    policy = next(e for e in page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.attributes["content"].startswith(
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


@pytest.mark.parametrize(
    "word",
    [HOSTILE, "</script><script>alert(1)</script>", "--></style><img src=x onerror=alert(1)>", "\ud800\u2066'\"&lt;"],
)
def test_nothing_that_a_guest_says_becomes_an_element_or_reorders_text(word: str) -> None:
    (crash,) = whole_result().crashes
    frame = crash.frames[0]._replace(function=word, module=word, file=word)
    crash = dataclasses.replace(crash, title=word, function=word, file=word, class_=word, task=word, frames=(frame,))
    result = RunResult(
        module=word,
        source=word,
        guest=word,
        kernel=word,
        outcome="oops",
        unmet=(word,),
        title=word,
        crashes=(crash,),
        reason=word,
        failure=word,
        diagnostics=(Diagnostic(word, 1, 1, "error", word),),
        log=(Record(1.0, word, word, None, 0),),
        steps=(StepResult("load", word, 1.0, word, 0.0),),
        tainted_by={7: word},
        directory=Path("/runs"),
        console=word,
        seconds=1.0,
    )
    page, plain = Page(result, BAD), Page(_tame(result), BAD)
    assert [element.tag for element in page.elements] == [element.tag for element in plain.elements]
    assert not [name for element in page.elements for name in element.attributes if name.startswith("on")]
    body = page.source[page.source.index("<body>") : page.source.index("<script>")]
    assert all(character.isprintable() for character in body), "no control or bidirectional character is left"
    page.source.encode("utf-8")


def _tame(result: RunResult) -> RunResult:
    """The same run by names that are harmless."""
    (crash,) = result.crashes
    frame = crash.frames[0]._replace(function="f", module="m", file="a.c")
    crash = dataclasses.replace(crash, title="t", function="f", file="a.c", class_="c", task="t", frames=(frame,))
    return dataclasses.replace(
        result,
        module="x",
        source="x",
        guest="x",
        kernel="x",
        title="x",
        reason="x",
        failure="x",
        console="x",
        unmet=("x",),
        crashes=(crash,),
        diagnostics=(Diagnostic("x", 1, 1, "error", "x"),),
        log=(Record(1.0, "info", "x", None, 0),),
        steps=(StepResult("load", "failed", 1.0, "x", 0.0),),
        tainted_by={7: "x"},
    )


def test_a_page_of_many_runs_with_long_logs_stays_one_that_a_browser_can_hold() -> None:
    log = tuple(Record(float(number), "info", "x" * 60, None, 0) for number in range(22_000))
    source = html.text([dataclasses.replace(BAD, module=f"m{number}", log=log) for number in range(200)])
    assert source.count("x" * 60) == 40_000
    assert "21800 records are left out" in source


# --- how it looks --------------------------------------------------------------------------------------------------


def themes() -> list[dict[str, str]]:
    """The colours by name: light, and dark, which changes some."""
    style = (Path(kmlab.report.formats.__file__).parent / "page.css").read_text("utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in style.split("prefers-color-scheme: dark")
    )
    assert set(light) == set(dark)
    return [light, dark]


def luminance(colour: str) -> float:
    """As WCAG 2 defines it (https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_all_text_has_the_contrast_that_wcag_wants(theme: dict[str, str]) -> None:
    tones = ("good", "bad", "warn", "lab", "known")
    pairs = [(tone, ground) for tone in (*tones, "ink", "soft") for ground in ("paper", "card", "sunk")]
    pairs += [(tone, f"{tone}-tint") for tone in tones] + [("ink", f"{tone}-tint") for tone in tones]
    for front, back in pairs:
        bright, dim = sorted((luminance(theme[front]), luminance(theme[back])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, f"{front} on {back}"
