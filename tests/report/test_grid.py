"""The page of modules × kernels: golden texts, and which failures are one."""

from __future__ import annotations

import dataclasses
import json

from kmlab.config.lab import Expect
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.parser.scanner import find_crashes
from kmlab.kernel.log.records import parse_log
from kmlab.report.grid import document, grid_of, lines
from kmlab.run.result import RunResult
from tests.places import TEST_DATA

OOPS = TEST_DATA / "oops"
KERNELS = {
    "debian": "6.1.0-56-cloud-amd64",
    "debian@6.12": "6.12.117+deb12-cloud-amd64",
    "trixie": "6.12.118+deb13-cloud-amd64",
    "trixie@backports": "7.3.4+deb13-cloud-amd64",
}
NEW_CLASS = "too few arguments to function \u2018class_create\u2019"
OLD_TIMER = "implicit declaration of function \u2018del_timer_sync\u2019; did you mean \u2018dev_mc_sync\u2019?"


def row(module: str, *outcomes: str, expect: Expect | None = None, **more: object) -> list[RunResult]:
    """A module on the kernels; what `more` says holds where it did not pass."""
    return [
        RunResult(
            module=module,
            source=module,
            guest=guest,
            kernel=None if outcome == "error" else kernel,
            outcome=outcome,
            expect=expect or Expect(),
            **({} if outcome == "pass" else more),  # type: ignore[arg-type]
        )
        for (guest, kernel), outcome in zip(KERNELS.items(), outcomes, strict=False)
    ]


def error(message: str, file: str = "x.c", line: int = 7) -> tuple[Diagnostic, ...]:
    return (Diagnostic(file, line, 1, "error", message),)


def crash(fingerprint: str = "f1", title: str = "BUG: kernel NULL pointer dereference in null_read") -> Crash:
    (found,) = find_crashes(parse_log((OOPS / "null-deref-read-6.12.txt").read_bytes()).records)
    return dataclasses.replace(found, title=title, file="oops.c", line=27, fingerprint=fingerprint)


def sentences(*results: list[RunResult]) -> dict[tuple[str, ...], str]:
    return {group.modules: group.sentence for group in grid_of([result for row in results for result in row]).groups}


def test_a_page_has_a_row_for_each_module_and_a_column_for_each_kernel() -> None:
    oops = Expect(outcome=("oops",))
    results = [
        *row("hello", "pass", "pass", "pass", "pass"),
        *row("oops", "oops", "oops", "oops", "oops", expect=oops, crashes=(crash(),), title=crash().title),
        *row("chardev", "build-failed", "pass", "pass", "pass", diagnostics=error(NEW_CLASS)),
        *row("ring", "pass", "pass", "pass", "hang", title="hang in spin_here", reason="it did not end"),
    ]
    assert lines(grid_of(results)) == [
        "module         debian          debian@6.12     trixie          trixie@backports",
        "…-cloud-amd64  6.1.0-56        6.12.117+deb12  6.12.118+deb13  7.3.4+deb13",
        "hello          pass            pass            pass            pass",
        "oops           oops            oops            oops            oops",
        "chardev        ! build-failed  pass            pass            pass",
        "ring           pass            pass            pass            ! hang",
        "14 as expected, 2 not (marked !)",
        "! chardev: builds from 6.4 on: class_create() takes the name only, without THIS_MODULE",
        "! ring: hang from 7.3 on: hang in spin_here",
    ]


def test_a_page_of_one_kernel_and_cells_that_are_not_there() -> None:
    assert lines(grid_of(row("hello", "pass"))) == [
        "module  debian",
        "        6.1.0-56-cloud-amd64",
        "hello   pass",
        "1 as expected, 0 not",
    ]
    page = lines(grid_of([*row("hello", "pass", "pass"), *row("other", "pass")]))
    assert page[3].split() == ["other", "pass", "-"]
    assert lines(grid_of([])) == ["module", "", "0 as expected, 0 not"]


def test_old_code_builds_before_a_change_only() -> None:
    told = sentences(row("tick", "pass", "pass", "pass", "build-failed", diagnostics=error(OLD_TIMER)))
    text = "del_timer() and del_timer_sync() are gone: use timer_delete() and timer_delete_sync()"
    assert told == {("tick",): f"builds before 6.15 only: since then {text}"}


def test_one_change_of_the_kernel_breaks_two_modules_and_is_one_group() -> None:
    told = sentences(
        row("one", "build-failed", "pass", "pass", "pass", diagnostics=error(NEW_CLASS, "one.c")),
        row("two", "build-failed", "pass", "pass", "pass", diagnostics=error(NEW_CLASS, "src/two.c", 90)),
    )
    assert told == {("one", "two"): "builds from 6.4 on: class_create() takes the name only, without THIS_MODULE"}


def test_what_is_not_so_is_not_said_where_a_module_fails_on_both_sides_of_a_change() -> None:
    results = row("one", "build-failed", "pass", "pass", "pass", diagnostics=error(NEW_CLASS))
    results[-1] = row("one", *["build-failed"] * 4, diagnostics=error("no such thing"))[-1]
    told = [group.sentence for group in grid_of(results).groups]
    assert told == [
        "no build before 6.4: class_create() takes the name only, without THIS_MODULE",
        "no build from 7.3 on: x.c:7: no such thing",
    ]


def test_a_build_error_that_no_known_change_explains_is_told_with_the_versions_it_parts() -> None:
    def said(*outcomes: str) -> str:
        return sentences(row("x", *outcomes, diagnostics=error("unknown thing")))["x",]

    good, bad = "pass", "build-failed"
    assert said(good, bad, bad, bad) == "builds up to 6.1, not from 6.12 on: x.c:7: unknown thing"
    assert said(bad, bad, bad, good) == "builds from 7.3 on, not up to 6.12: x.c:7: unknown thing"
    assert said(good, good, bad, good) == "no build on trixie: x.c:7: unknown thing"
    assert said(bad, good, good, bad) == "no build on debian and trixie@backports: x.c:7: unknown thing"
    assert said(bad, bad, bad, bad) == "no build on every kernel: x.c:7: unknown thing"


def test_the_same_bug_on_several_kernels_is_one_group_and_another_bug_is_another() -> None:
    same = row("oops", "oops", "oops", crashes=(crash(),), title=crash().title)
    assert sentences(same) == {
        ("oops",): "oops on every kernel: BUG: kernel NULL pointer dereference in null_read at oops.c:27"
    }
    other = row("oops", "oops", "oops", crashes=(crash("f2", "BUG: divide"),), title="BUG: divide")
    assert len(grid_of([same[0], other[1]]).groups) == 2


def test_numbers_that_differ_from_kernel_to_kernel_do_not_make_two_failures_of_one() -> None:
    results = row("x", "load-failed", "load-failed", title="x: version magic '6.1' should be '6.12'")
    results[1] = row("x", "pass", "load-failed", title="x: version magic '6.1' should be '7.3'")[1]
    (group,) = grid_of(results).groups
    assert group.guests == ("debian", "debian@6.12")


def test_a_guest_that_could_not_be_had_is_one_group_whatever_ran_in_it() -> None:
    results = [r for name in "abcdefgh" for r in row(name, "pass", "error", title="no room on the disk")]
    page = lines(grid_of(results))
    assert page[1].split() == ["6.1.0-56-cloud-amd64", "-"]
    assert page[-1] == "! a, b, c, d, e, f and 2 more: error on debian@6.12: no room on the disk"


def test_what_was_expected_and_is_the_same_everywhere_needs_no_sentence_but_is_in_the_json() -> None:
    expect = Expect(outcome=("build-failed", "pass"))
    everywhere = row("no", *["build-failed"] * 4, expect=expect, diagnostics=error("expected ';'"))
    somewhere = row("some", "build-failed", "pass", "pass", "pass", expect=expect, diagnostics=error(NEW_CLASS))
    grid = grid_of([*everywhere, *somewhere])
    assert lines(grid)[-2:] == [
        "8 as expected, 0 not",
        "  some: builds from 6.4 on: class_create() takes the name only, without THIS_MODULE",
    ]
    assert [group["modules"] for group in document(grid)["groups"]] == [["no"], ["some"]]


def test_an_expectation_that_was_not_met_is_told_though_the_outcome_is_right() -> None:
    results = row("hello", "pass", "pass")
    results[1] = RunResult(
        module="hello", source="hello", guest="debian@6.12", kernel=KERNELS["debian@6.12"],
        unmet=("expected in the log: hi",),
    )  # fmt: skip
    page = lines(grid_of(results))
    assert page[2].split() == ["hello", "pass", "!", "pass"]
    assert page[-1] == "! hello: pass from 6.12 on: expected in the log: hi"


def test_the_page_as_json_has_a_cell_for_every_column_of_every_row() -> None:
    grid = grid_of([*row("a", "pass", "build-failed", diagnostics=error("no")), *row("b", "pass")])
    told = json.loads(json.dumps(document(grid)))
    assert told["columns"] == [{"guest": g, "kernel": KERNELS[g]} for g in ("debian", "debian@6.12")]
    assert told["rows"] == [
        {"module": "a", "cells": [{"outcome": "pass", "ok": True}, {"outcome": "build-failed", "ok": False}]},
        {"module": "b", "cells": [{"outcome": "pass", "ok": True}, None]},
    ]
    (group,) = told["groups"]
    assert group.pop("fingerprint") == grid.groups[0].fingerprint
    assert group == {
        "outcome": "build-failed",
        "modules": ["a"],
        "guests": ["debian@6.12"],
        "ok": False,
        "sentence": "builds up to 6.1, not from 6.12 on: x.c:7: no",
    }


def test_the_same_expectation_missed_over_addresses_that_differ_is_one_group() -> None:
    results = [
        dataclasses.replace(each, unmet=(f"expected the guilty function late_timer, found 0xffffffffc051{number}000",))
        for number, each in enumerate(row("late", "panic", "panic", expect=Expect(outcome=("panic",))))
    ]
    (group,) = grid_of(results).groups
    assert group.sentence == (
        "panic on every kernel: expected the guilty function late_timer, found 0xffffffffc0510000"
    )


def test_words_with_numbers_make_no_difference_and_a_word_without_end_is_read_once() -> None:
    said = [f"took {number} s at 0x{number}f in {'x' * 200_000}" for number in (3, 4)]
    results = [row("load", "load-failed", reason=text) for text in said]
    assert len({group.fingerprint for runs in results for group in grid_of(runs).groups}) == 1
