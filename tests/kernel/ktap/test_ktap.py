"""Test output of every kind comes to the right cases; what is cut, contradicts itself or bails out is no pass."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmlab.kernel.ktap.case_results import Expectation, TestOutput
from kmlab.kernel.ktap.output_reader import read_test_output


def read(text: str, *, program: bool = False) -> TestOutput:
    return read_test_output(text.strip("\n").split("\n"), program=program)


def cases(output: TestOutput) -> dict[str, str]:
    return {case.full_name: case.status for case in output.cases}


NESTED = """
KTAP version 1
1..2
  KTAP version 1
  1..2
    KTAP version 1
    1..2
    not ok 1 deep_a
    ok 2 deep_b
  not ok 1 middle
  ok 2 plain # SKIP no device
not ok 1 outer
ok 2 last
"""
KUNIT = """
    KTAP version 1
    # Subtest: larva
    # module: larva_test
    1..3
    # larva_eats: initializing
    ok 1 larva_eats
    # larva_grows: EXPECTATION FAILED at drivers/larva_test.c:34
    Expected size == 3, but
        size == 2 (0x2)
    not ok 2 larva_grows
        KTAP version 1
        # Subtest: larva_moults
        ok 1 small
    # larva_moults: ASSERTION FAILED at drivers/larva_test.c:51
    Expected skin is not null, but is
        not ok 2 large
    # larva_moults: pass:1 fail:1 skip:0 total:2
    not ok 3 larva_moults
# larva: pass:1 fail:2 skip:0 total:3
# Totals: pass:2 fail:2 skip:0 total:4
not ok 1 larva
"""
OLD_KUNIT = """
	# Subtest: larva
	1..2
	ok 1 - larva_eats
kunit larva: one says something
	ok 2 - larva_grows
ok 1 - larva
	# Subtest: pupa
	1..1
	not ok 1 - pupa_waits
not ok 2 - pupa
"""
KSELFTEST = """
TAP version 13
1..4
# timeout set to 45
# selftests: timers: posix
# TAP version 13
# 1..2
# # Testing the clock
# ok 1 itimer virtual
# not ok 2 itimer prof
# # Totals: pass:1 fail:1 xfail:0 xpass:0 skip:0 error:0
not ok 1 selftests: timers: posix # exit=1
# selftests: timers: plain.sh
# it prints what it likes
# ok, says it
ok 2 selftests: timers: plain.sh
# selftests: timers: harness
# TAP version 13
# 1..1
# # Starting 1 tests from 1 test cases.
# #  RUN           global.adds ...
# # adds_test.c:12:adds:Expected 2 (2) == 3 (3)
# #          FAIL  global.adds
# not ok 1 global.adds
# # FAILED: 0 / 1 tests passed.
not ok 3 selftests: timers: harness # exit=1
# selftests: timers: root_only
ok 4 selftests: timers: root_only # SKIP
"""


def test_nested_ktap_has_the_cases_of_all_levels() -> None:
    output = read(NESTED)
    assert cases(output) == {
        "outer.middle.deep_a": "failed",
        "outer.middle.deep_b": "passed",
        "outer.plain": "skipped",
        "last": "passed",
    }
    assert output.problems == ()
    assert output.cases[2].reason == "no device"


def test_a_kunit_module_has_no_line_around_its_suite_and_its_expectations_have_places() -> None:
    output = read(KUNIT)
    assert cases(output) == {
        "larva.larva_eats": "passed",
        "larva.larva_grows": "failed",
        "larva.larva_moults.small": "passed",
        "larva.larva_moults.large": "failed",
    }
    assert output.problems == ()
    grows, large = output.cases[1], output.cases[3]
    assert grows.expectations == (Expectation("drivers/larva_test.c", 34, "Expected size == 3, but size == 2 (0x2)"),)
    assert large.expectations == (Expectation("drivers/larva_test.c", 51, "Expected skin is not null, but is"),)
    assert grows.reason == "Expected size == 3, but size == 2 (0x2)"


def test_kunit_before_ktap_begins_with_the_header_of_a_suite() -> None:
    output = read(OLD_KUNIT)
    assert cases(output) == {"larva.larva_eats": "passed", "larva.larva_grows": "passed", "pupa.pupa_waits": "failed"}
    assert output.problems == ()


def test_kselftest_has_the_cases_of_its_programs_behind_hash_signs() -> None:
    output = read(KSELFTEST, program=True)
    assert cases(output) == {
        "selftests: timers: posix.itimer virtual": "passed",
        "selftests: timers: posix.itimer prof": "failed",
        "selftests: timers: plain.sh": "passed",
        "selftests: timers: harness.global.adds": "failed",
        "selftests: timers: root_only": "skipped",
    }
    assert output.problems == ()
    assert output.cases[3].expectations == (Expectation("adds_test.c", 12, "Expected 2 (2) == 3 (3)"),)


def test_a_kselftest_whose_programs_print_no_version_line_and_one_that_calls_two() -> None:
    output = read(
        """
TAP version 13
1..2
# selftests: net: short
# 1..1
# not ok 1 sends
not ok 1 selftests: net: short # exit=1
# selftests: net: both.sh
# TAP version 13
# 1..1
# ok 1 first
# TAP version 13
# 1..2
# ok 1 second
# ok 2 third
ok 2 selftests: net: both.sh
""",
        program=True,
    )
    assert cases(output) == {
        "selftests: net: short.sends": "failed",
        "selftests: net: both.sh.first": "passed",
        "selftests: net: both.sh.second": "passed",
        "selftests: net: both.sh.third": "passed",
    }
    assert output.problems == ()


def test_a_group_that_failed_although_its_cases_passed_is_a_failure() -> None:
    output = read("TAP version 13\n1..1\n# selftests: a: b\n# TAP version 13\n# 1..1\n# ok 1 c\nnot ok 1 b # exit=139")
    assert cases(output) == {"b.c": "passed", "b": "failed"}
    assert output.cases[1].reason == "exit=139"


def test_directives_decide_what_a_result_means() -> None:
    output = read(
        """
KTAP version 1
1..9
ok 1 a # SKIP no root
not ok 2 b # skip: no device
not ok 3 c # TODO not written
ok 4 d # TODO works now
ok 5 e # XFAIL known
not ok 6 f # TIMEOUT 30 seconds
ok 7 g # TIMEOUT 45 seconds
not ok 8 # error no memory
ok 9 check of C# code # rcode=0
"""
    )
    assert [case.status for case in output.cases] == [
        *("skipped", "skipped", "expected-failure", "passed", "expected-failure", "failed", "failed", "failed"),
        "passed",
    ]
    assert output.cases[8].name == "check of C# code"
    assert output.cases[7].name == "case 8"
    assert output.cases[5].reason == "30 seconds"
    assert output.problems == ()


def test_other_lines_and_prefixes_stand_between_results() -> None:
    output = read(
        """
usb 1-1: new device
larva: KTAP version 1
larva: 1..2
usb 1-1: not ok 7 with power
larva: ok 1 hatch
eth0: link is not ok at all
ok 9 is said by another driver
larva: not ok 2 fly
"""
    )
    assert cases(output) == {"hatch": "passed", "fly": "failed"}
    assert output.problems == ()


def test_two_outputs_with_their_own_prefixes_may_be_interleaved() -> None:
    output = read("a: KTAP version 1\nb: KTAP version 1\na: 1..1\nb: 1..1\nb: ok 1 x\na: not ok 1 y")
    assert cases(output) == {"x": "passed", "y": "failed"}
    assert output.problems == ()


@pytest.mark.parametrize(
    "text",
    [
        "the clock is not ok 1 bit",
        "not ok 1 I say",
        "1..2\nok 1 a\nnot ok 2 b",
        "larva: we speak KTAP version 1 here\nnot ok 1 a",
        "this is no KTAP version 1\nnot ok 1 a",
        "# Subtest: a sentence\nnot ok 1 a",
        "ok\nnot ok\nBail out!",
    ],
)
def test_a_kernel_that_prints_something_like_it_has_no_tests(text: str) -> None:
    assert not read(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("KTAP version 1", "the test output ends before its first case"),
        ("KTAP version 1\n1..0", "the test output has no case"),
        ("KTAP version 1\n1..3\nok 1 a\nok 2 b", "the test output has 2 of 3 results"),
        ("KTAP version 1\n1..1\nok 1 a\nok 2 b", "the test output has 2 of 1 results"),
        ("KTAP version 1\n1..2\nok 1 a\nok 3 c", "the test output has results whose numbers are not in sequence"),
        ("KTAP version 1\n1..2\nok 1 a\nok 1 a", "the test output has results whose numbers are not in sequence"),
        ("KTAP version 1\nok 2 b", "the test output has results whose numbers are not in sequence"),
        ("KTAP version 1\n1..2\n1..1\nok 1 a", "the test output has two plans"),
        ("KTAP version 1\n1..2\nok 1 a\nBail out! no memory\nok 2 b", "bailed out: no memory"),
        ("KTAP version 1\n1..1\nok 1 a\nBail out!", "bailed out"),
        ("KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 a", "case 1 has no result: the output ends early"),
        ("    # Subtest: s\n    1..2\n    ok 1 a", "s has 1 of 2 results"),
        ("    # Subtest: s\n    1..1\n    ok 1 a", "s has no result: the output ends early"),
        ("KTAP version 1\n1..1\n    # Subtest: s\n    1..2\n    ok 1 a\nok 1 s", "s has 1 of 2 results"),
        ("KTAP version 1\n1..1\n    # Subtest: s\n    1..0\nok 1 s", "s has no case"),
        ("TAP version 13\n1..2\n# selftests: a: b\n# TAP version 13\n# 1..1\n# ok 1 c", "case 1 has no result"),
    ],
)
def test_an_output_that_is_cut_or_contradicts_itself_is_no_pass(text: str, problem: str) -> None:
    output = read(text)
    assert output.bad
    assert any(found.startswith(problem) for found in output.problems), output.problems


def test_every_cut_of_an_output_is_no_pass() -> None:
    """But where only the diagnostics at its end are lost."""
    for text in (NESTED, KUNIT, KSELFTEST, OLD_KUNIT):
        good = text.replace("not ok", "ok").strip("\n").split("\n")
        assert not read_test_output(good, program=text is KSELFTEST).bad
        for length in range(1, len(good)):
            output = read_test_output(good[:length], program=text is KSELFTEST)
            complete = text is OLD_KUNIT and good[length - 1].startswith("ok")
            assert output.bad or complete or not output, good[:length]


def test_a_failure_is_not_taken_back_by_what_follows() -> None:
    output = read("KTAP version 1\n1..2\nnot ok 1 a\nok 1 a\nKTAP version 1\n1..1\nok 1 a")
    assert output.bad
    assert [case.status for case in output.cases] == ["failed", "passed", "passed"]


def test_a_failure_with_a_wrong_indent_counts() -> None:
    output = read("KTAP version 1\n1..2\nok 1 a\n      not ok 2 b")
    assert cases(output) == {"a": "passed", "b": "failed"}
    assert output.problems == ()


def test_yaml_below_a_result_is_not_read_as_results_and_ends_with_its_indent() -> None:
    output = read(
        """
TAP version 14
1..3
not ok 1 a
  ---
  message: 'expected 3'
  not ok 7 is an example
  ...
ok 2 b
  ---
  severity: none
not ok 3 c
""",
        program=True,
    )
    assert cases(output) == {"a": "failed", "b": "passed", "c": "failed"}
    assert output.cases[0].reason == "'expected 3'"
    assert output.problems == ()


def test_tap_14_names_a_group_before_it() -> None:
    output = read(
        "TAP version 14\n1..2\n# Subtest: one\n    ok 1 - a\n    1..1\nok 1 - one\n# Subtest: two\n    1..1\n"
        "    not ok 1 - b\nnot ok 2 - two\n",
        program=True,
    )
    assert cases(output) == {"one.a": "passed", "two.b": "failed"}
    assert output.problems == ()


@pytest.mark.parametrize(
    "text",
    [
        "1..2\nok 1 - a\nnot ok 2 - b",
        "ok 1 - a\nnot ok 2 - b\n# failed 1\n1..2",
        "TAP version 13\n1..2\nok - a\nnot ok - b",
        "TAP version 13\nok 1 a\nnot ok 2 b\n1..2",
        "hello\nTAP version 12\n1..2\nok 1 a\nnot ok 2 b",
    ],
)
def test_a_program_may_print_any_tap(text: str) -> None:
    output = read(text, program=True)
    assert cases(output) == {"a": "passed", "b": "failed"}
    assert output.problems == ()


@pytest.mark.parametrize("text", ["1..2", "1..2 is a range\nok 1 a", "ok 1 a\nok 2 b", "all is ok\nnot ok", "ok\nok"])
def test_a_program_that_prints_something_like_it_has_no_tests(text: str) -> None:
    assert not read(text, program=True)


def test_a_plan_of_none_with_a_reason_is_skipped() -> None:
    output = read("TAP version 13\n1..0 # SKIP needs root", program=True)
    assert [(case.status, case.reason) for case in output.cases] == [("skipped", "needs root")]
    assert not output.bad


def test_an_output_whose_indents_were_lost_is_read_by_its_plans() -> None:
    output = read(
        "KTAP version 1\n1..2\nKTAP version 1\n# Subtest: one\n1..2\nok 1 a\nnot ok 2 b\nnot ok 1 one\n"
        "KTAP version 1\n# Subtest: two\n1..1\nok 1 c\nok 2 two"
    )
    assert cases(output) == {"one.a": "passed", "one.b": "failed", "two.c": "passed"}
    assert output.problems == ()


def test_who_runs_when_the_output_ends_is_told() -> None:
    output = read("    KTAP version 1\n    # Subtest: larva\n    1..3\n    ok 1 eats\n    # grows: initializing")
    assert [each.path for each in output.running] == [("larva", "grows")]
    output = read("    KTAP version 1\n    # Subtest: larva\n    1..3\n    ok 1 eats")
    assert [each.path for each in output.running] == [("larva", "case 2")]


def test_too_many_outputs_at_a_time_are_no_pass() -> None:
    lines = [f"{letter}: KTAP version 1" for letter in "abcdefghijklmnopqrst"]
    assert "different prefixes" in read_test_output([*lines, "t: 1..1", "t: not ok 1 x"]).problems[-1]


def test_what_a_program_prints_is_made_safe() -> None:
    output = read("TAP version 13\n1..1\nnot ok 1 \x1b[31ma\u202eb # no\x07", program=True)
    assert output.cases[0].name == "\\x1b[31ma\\u202eb"
    assert output.cases[0].reason == "no\\x07"


@pytest.mark.parametrize(
    "line",
    [
        *(
            "#" * 8000,
            "# " * 4000,
            " " * 8000 + "x",
            "ok 1 " + " " * 8000 + "x",
            "ok 1 " + "# " * 4000,
            "1.." + "9" * 8000,
        ),
        *(": " * 4000 + " version 1", "\t" * 8000, "not ok 1 " + "\\" * 8000, "# Subtest: " + "s" * 8000),
    ],
)
def test_a_hostile_line_takes_no_long(line: str) -> None:
    began = time.process_time()
    read_test_output(["KTAP version 1", *[line] * 50, "not ok 1 x"])
    assert time.process_time() - began < 5


_PIECES = st.sampled_from(
    [
        *("ok 1", "not ok 1", "ok 2 a", "not ok 2 b", "1..1", "1..2", "1..0", "KTAP version 1", "TAP version 13"),
        *("# Subtest: s", "# ", "    ", "  ", "\t", "Bail out!", "---", "...", "m: ", "# SKIP", "# selftests: x"),
        *("", "text"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(_PIECES, max_size=4).map("".join), max_size=30), st.booleans())
def test_any_lines_are_read_and_a_failure_never_disappears(lines: list[str], program: bool) -> None:
    output = read_test_output(lines, program=program)
    whole = read_test_output(["KTAP version 1", "1..2", "ok 1 a", "not ok 2 failing", *lines], program=program)
    assert whole.bad
    assert any(case.name == "failing" and case.bad for case in whole.cases)
    for case in output.cases:
        assert case.path and 0 <= case.span[0] <= case.span[1] < len(lines)
