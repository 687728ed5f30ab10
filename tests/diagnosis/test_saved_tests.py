"""A saved log's tests are judged in every form: a console's, a journal's, a program's output, or all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.diagnosis.saved_tests import SavedTests, judge_tests
from tests.story import OOPS

SUITE = (
    "    KTAP version 1",
    "    # Subtest: larva",
    "    1..2",
    "    ok 1 eats",
    "    # grows: EXPECTATION FAILED at larva.c:7",
    "    Expected size == 3, but is not",
    "    not ok 2 grows",
    "not ok 1 larva",
)
BAD = {"larva.eats": "passed", "larva.grows": "failed"}
VFS = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    return tmp_path / "saved.log"


def judge(file: Path, lines: list[str] | str) -> SavedTests:
    file.write_text(lines if isinstance(lines, str) else "".join(f"{line}\n" for line in lines))
    return judge_tests(str(file))


def cases(saved: SavedTests) -> dict[str, str]:
    return {case.full_name: case.status for case in saved.tests.cases}


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "[   12.345678] ",
        "<6>[   12.345678] ",
        "[   12.345678][  T123] ",
        "Nov 27 12:00:00 larva kernel: ",
        "2026-11-27T12:00:00,123456+01:00 ",
        "kern  :info  : [   12.345678] ",
        "console-1 | ",
        "  ",
    ],
)
def test_a_log_of_any_form_has_its_cases(judged: Path, prefix: str) -> None:
    saved = judge(judged, [f"{prefix}{line}" for line in ("loading", *SUITE, "done")])
    assert cases(saved) == BAD
    assert saved.tests.problems == ()
    assert saved.tests.cases[1].expectations[0][:2] == ("larva.c", 7)


def test_a_console_has_the_results_of_a_program_and_of_the_kernel(judged: Path) -> None:
    program = ["TAP version 13", "1..2", "ok 1 - a", "not ok 2 - b"]
    kernel = [f"[   12.345678] {line}" for line in SUITE]
    mixed = [line for pair in zip(kernel, program * 2, strict=True) for line in pair[:1]]
    mixed[2:2] = program[:2]
    mixed[5:5] = program[2:]
    assert cases(judge(judged, mixed)) == {**BAD, "a": "passed", "b": "failed"}


def test_a_crash_during_the_tests_counts_and_names_its_case(judged: Path) -> None:
    oops = [line[3:] for line in OOPS]
    saved = judge(judged, [f"[   12.345678] {line}" for line in (*SUITE[:4], *oops)])
    assert cases(saved) == {"larva.eats": "passed", "larva.case 2": "crashed"}
    assert [crash.kind for crash in saved.crashes] == ["oops"]


def test_the_function_that_kunit_called_is_the_case(judged: Path) -> None:
    oops = [line[3:] for line in OOPS]
    called = [
        " larva_grows+0x5/0x10 [larva]",
        " kunit_try_run_case+0x51/0x80",
        " kunit_generic_run_threadfn_adapter+0x1/0x20",
    ]
    lines = [line.replace(" do_one_initcall+0x56/0x230", "\n".join(called)) for line in oops]
    text = "\n".join((*SUITE[:4], *lines)).split("\n")
    saved = judge(judged, [f"[   12.345678] {line}" for line in text])
    assert cases(saved) == {"larva.eats": "passed", "larva.larva_grows": "crashed"}


def test_a_crash_after_the_tests_is_a_note(judged: Path) -> None:
    good = [line.replace("not ok", "ok") for line in SUITE]
    saved = judge(
        judged, [f"[   12.345678] {line}" for line in (*good, VFS, "CPU: 0 PID: 1 Comm: swapper Not tainted 6.1.0")]
    )
    assert not saved.tests.bad
    assert saved.crashes == ()
    (note,) = saved.notes
    assert note.startswith("outside of the tests: Kernel panic: VFS: Unable to mount root fs")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no test output in this file"),
        ("[    1.000000] it is not ok 1 bit\n", "no test output in this file"),
        ("hello\n", "no test output in this file"),
        ("\x1f\x8b\x08 packed", "no test output"),
    ],
)
def test_a_file_without_results_is_one_error(judged: Path, content: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        judge(judged, content)


def test_a_packed_file_is_told_with_its_remedy(judged: Path) -> None:
    import gzip

    judged.write_bytes(gzip.compress(b"KTAP version 1\n"))
    with pytest.raises(ConfigError, match="this is no test output: it is") as error:
        judge_tests(str(judged))
    assert error.value.hint and "zcat" in error.value.hint


def test_a_file_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read this log"):
        judge_tests(str(tmp_path / "absent"))
