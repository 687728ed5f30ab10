"""kmlab.kernel.diagnostics: what compiler, modpost, linker and make said."""

from __future__ import annotations

import time
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmlab.kernel.build.diagnostics import Diagnostic, parse_diagnostics
from kmlab.kernel.build.explain import build_reason
from tests.builds import LOGS, OLD, read, reason_of


def test_gcc_s_diagnostics_have_place_and_message() -> None:
    found = read("api-6.1")
    assert [(d.file, d.line, d.column, d.severity) for d in found] == [
        ("inner.h", 1, 36, "error"),
        ("mod.c", 7, 13, "error"),
        ("mod.c", 7, 11, "warning"),
        ("mod.c", 8, 9, "error"),
        ("mod.c", 9, 16, "error"),
        ("mod.c", 6, 13, "warning"),
        ("mod.c", 10, 1, "error"),
    ]
    assert found[0].message == "\u2018nowhere\u2019 undeclared (first use in this function)"


def test_includes_and_notes_stay_with_their_diagnostic() -> None:
    notes = read("api-6.1")[0].notes
    assert notes[0] == "mod.c:2: included from here"
    assert notes[1].startswith("inner.h:1: each undeclared identifier")


def test_clang_s_diagnostics_are_read_relative_to_make_s_folder() -> None:
    found = read("clang")
    assert [(d.file, d.line, d.column, d.severity) for d in found] == [
        ("inner.h", 4, 9, "error"),
        ("mod.c", 12, 30, "error"),
        ("mod.c", 14, 6, "warning"),
    ]
    assert found[1].notes == ("include/linux/device/class.h:228: 'class_create' declared here",)


def test_a_missing_header_is_an_error_with_its_place() -> None:
    assert read("header-6.1") == [Diagnostic("mod.c", 2, 10, "error", "linux/nothere.h: No such file or directory")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("undef-6.1", ("mod.ko", "error", '"not_exported_at_all" undefined!')),
        ("license-6.1", ("mod.o", "error", "missing MODULE_LICENSE()")),
        ("gpl-6.1", (None, "error", "GPL-incompatible module mod.ko uses GPL-only symbol '__class_create'")),
        (
            "ns-6.1",
            (
                None,
                "error",
                "module mod uses symbol dma_buf_put from namespace DMA_BUF, but does not import it.",
            ),
        ),
    ],
)
def test_modpost_s_errors_are_read(name: str, expected: tuple[str | None, str, str]) -> None:
    (found,) = read(name)
    assert (found.file, found.severity, found.message) == expected


@pytest.mark.parametrize("name", ["macro-6.1", "macro-7.3", "float-6.12"])
def test_what_is_wrong_with_the_use_of_a_macro_is_wrong_where_it_is_used(name: str) -> None:
    first = read(name)[0]
    assert (first.file, first.line, first.column) == ("mod.c", 8, 9)
    assert any("include/linux/printk.h:" in note for note in first.notes)


def test_modpost_s_words_of_7_are_read() -> None:
    assert read("undef-7.3") == [Diagnostic("mod.ko", None, None, "error", '"kallsyms_lookup_name" undefined!')]
    assert reason_of(
        "ERROR: modpost: m.ko: module uses symbol 'f' from namespace 'NS', but does not import it."
    ).startswith("f() is of the namespace NS")
    assert reason_of("ERROR: modpost: m.ko: symbol 'f' exported twice. Previous export was in vmlinux").startswith(
        "f is exported twice"
    )


def test_what_make_says_of_its_own_end_is_no_diagnostic() -> None:
    log = "make[3]: *** Waiting for unfinished jobs....\nmake[3]: *** Deleting file 'a.ko'\n"
    assert parse_diagnostics(log, PurePosixPath("/m")) == []


def test_modpost_s_words_of_5_10_are_read() -> None:
    found = read("modpost-5.10", "/srv/old")
    assert [(d.file, d.severity) for d in found] == [
        ("plain.o", "warning"),
        ("mod.o", "warning"),
        ("mod.ko", "error"),
        ("mod.ko", "error"),
    ]


def test_modpost_s_words_of_6_12_are_read() -> None:
    found = read("modpost-6.12", "/srv/new")
    assert [(d.file, d.severity) for d in found] == [
        ("mod.o", "warning"),
        ("mod", "warning"),
        ("mod.ko", "error"),
    ]
    assert found[1].message.startswith("section mismatch in reference: late")


def test_the_linker_s_errors_are_read() -> None:
    assert read("multi-6.1") == [Diagnostic("b.c", 3, None, "error", "multiple definition of `x'")]


def test_make_s_own_errors_are_read() -> None:
    (found,) = read("rule-6.1")
    assert found.message.startswith("No rule to make target 'mod.o'")
    assert [d.message for d in read("rule-7.3")] == ["No rule to make target 'other.o'"]
    assert parse_diagnostics("Makefile:3: *** missing separator.  Stop.\n", PurePosixPath("/m")) == [
        Diagnostic("Makefile", 3, None, "error", "missing separator")
    ]


def test_a_build_that_only_warns_has_only_warnings() -> None:
    assert [d.severity for d in read("warn-6.1")] == ["warning"]


def test_a_clean_build_says_nothing() -> None:
    log = "make: Entering directory '/x'\n  CC [M]  /m/a.o\n  LD [M]  /m/a.ko\nmake: Leaving directory '/x'\n"
    assert parse_diagnostics(log, PurePosixPath("/m")) == []


def test_the_same_diagnostic_of_two_attempts_is_said_once() -> None:
    text = (LOGS / "header-6.1.log").read_text()
    assert len(parse_diagnostics(text * 2, PurePosixPath("/srv/header"))) == 1


@settings(max_examples=200, deadline=500)
@given(st.text(alphabet="/-:.m\"'[]()* \n1aerorwning", max_size=3000))
def test_any_text_is_read(text: str) -> None:
    found = parse_diagnostics(text, PurePosixPath("/m"))
    assert all(diagnostic.message.isprintable() for diagnostic in found)
    assert build_reason(text, 2, found, OLD)


@pytest.mark.parametrize("unit", ["-/", "a:", "x.o:", "1: ", "ld", "'", "make[1]: ", "ERROR: modpost: "])
def test_hostile_lines_are_read_in_linear_time(unit: str) -> None:
    began = time.process_time()
    parse_diagnostics((unit * 1000 + "\n") * 200 + unit * 500_000, PurePosixPath("/m"))
    assert time.process_time() - began < 1.0
