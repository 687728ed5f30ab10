"""In real guests: the results that a module prints from init, and those that an exercise prints, are judged."""

from __future__ import annotations

from tests.guest.conftest import LAB_YAML, Lab

EXAMPLES = LAB_YAML.parent / "examples"
TAP = "TAP version 13; 1..2; ok 1 - reads; not ok 2 - writes"
KSELFTEST = """TAP version 13
1..2
# selftests: larva: hatch
# TAP version 13
# 1..2
# ok 1 one
# not ok 2 many
not ok 1 selftests: larva: hatch # exit=1
# selftests: larva: fly
ok 2 selftests: larva: fly # SKIP
"""


def cases(result: dict[str, object]) -> dict[str, str]:
    tests = result["tests"]
    assert isinstance(tests, dict)
    return {".".join(filter(None, (case["suite"], case["name"]))): case["status"] for case in tests["cases"]}


def test_a_module_that_prints_a_failure_from_init_is_test_failed(repository: Lab) -> None:
    words = ("run", str(EXAMPLES / "ktap"), "-p", "broken=1", "--exercise", "true", "--json")
    result = repository(*words, code=1).result
    assert (result["outcome"], result["guest_survived"]) == ("test-failed", True)
    assert cases(result) == {"hatch_none": "passed", "hatch_one": "passed", "hatch_many": "failed"}
    assert result["title"] == "1 of 3 test cases failed: hatch_many"


def test_an_exercise_that_prints_a_failure_is_test_failed_although_it_ends_with_0(repository: Lab) -> None:
    exercise = f"printf '%s\\n' {' '.join(repr(line) for line in TAP.split('; '))}"
    result = repository("run", str(EXAMPLES / "hello"), "--exercise", exercise, "--json", code=1).result
    assert result["outcome"] == "test-failed"
    assert cases(result) == {"reads": "passed", "writes": "failed"}


def test_what_a_program_writes_to_the_kernel_s_log_is_no_result(repository: Lab) -> None:
    exercise = "for line in 'KTAP version 1' 1..1 'not ok 1 x'; do echo $line > /dev/kmsg; done; echo it is not ok"
    result = repository("run", str(EXAMPLES / "hello"), "--exercise", exercise, "--json").result
    assert (result["outcome"], result["tests"]) == ("pass", {"cases": [], "problems": []})


def test_an_exercise_that_prints_what_kselftest_s_runner_prints_has_the_cases_within(repository: Lab) -> None:
    lines = " ".join(f"'{line}'" for line in KSELFTEST.splitlines())
    result = repository(
        "run", str(EXAMPLES / "hello"), "--exercise", f"printf '%s\\n' {lines}", "--json", code=1
    ).result
    assert cases(result) == {
        "selftests: larva: hatch.one": "passed",
        "selftests: larva: hatch.many": "failed",
        "selftests: larva: fly": "skipped",
    }
