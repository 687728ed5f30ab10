"""A fuzzing that goes wrong is reduced to the fewest last calls that go wrong in a fresh guest, as a C program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from kmlab.common.errors import ConfigError
from kmlab.config.lab import Fuzz, Lab
from kmlab.config.run_options import Options, TorturePlan
from kmlab.run import torture_runs
from kmlab.run.torture_runs import CaseResult
from kmlab.testing import Act, FakeModule, World
from tests.story import OOPS

HEADER = "#define HELLO_SET _IOW('h', 1, int)\n"
CALLS = "name HELLO_SET 0x40046801\n9 calls, taint\n" + "".join(
    f"call {number} ioctl 0 0x40046801 0x20000000 0x0 0x0 4 {number:02x}000000\n" for number in range(1, 10)
)
WRONG = Act(kernel=OOPS, output=CALLS)
ONE_ROUND = Fuzz(device="/dev/hello", ioctls=("hello.h",), rounds=1)
Fuzzed = Callable[..., list[CaseResult]]


@pytest.fixture
def fuzzed(lab: Lab, world: World) -> Fuzzed:
    """Fuzz examples/hello, which crashes if the C program has at least that many calls."""

    def fuzzed(
        act: Act = WRONG, needed: int = 3, fuzz: Fuzz = ONE_ROUND, header: str = HEADER, again: Act = Act(kernel=OOPS)
    ) -> list[CaseResult]:
        def reproduces(program: str) -> Act:
            return again if program.count("\tstep(") >= needed else Act()

        for name in fuzz.ioctls if "/" not in fuzz.ioctls[0] and fuzz.ioctls[0] != "none.h" else ():
            (lab.folder / "hello" / name).write_text(header)
        world.modules["hello"] = FakeModule(name="hello", torture={"fuzz-1": act}, reproduces=reproduces)
        module = dataclasses.replace(lab.module_for(lab.folder / "hello"), fuzz=fuzz)
        plan = TorturePlan(groups=("fuzz",))
        specs = [lab.guest("debian")]
        return torture_runs.torture(world.host, lab, specs, module, Options(), plan, lambda event: None)

    return fuzzed


def test_a_device_that_bears_all_calls_passes(fuzzed: Fuzzed, world: World) -> None:
    results = fuzzed(Act(output="50000 calls, end\n"), fuzz=dataclasses.replace(ONE_ROUND, rounds=2))
    assert [(case.name, case.outcome) for case in results] == [("fuzz-1", "pass"), ("fuzz-2", "pass")]
    assert all(case.reproducer is None for case in results)
    assert world.asked.count("restore") == 1


def test_the_fewest_last_calls_that_go_wrong_become_a_c_program(fuzzed: Fuzzed, world: World) -> None:
    (case,) = fuzzed(needed=3)
    assert (case.outcome, case.calls, case.reproduces) == ("oops", 4, True)
    assert case.run is not None and case.run.directory is not None and case.reproducer is not None
    assert case.reproducer.parent == case.run.directory
    text = case.reproducer.read_text()
    assert [line for line in text.splitlines() if "\tstep(" in line] == [f"\tstep({n});" for n in range(6, 10)]
    assert "ioctl(file(0), 0x40046801ul /* HELLO_SET */, 0x20000000ul);" in text
    assert "It went wrong in a fresh guest." in text
    assert world.asked.count("restore") == 5, "the case; 1, 2 and 4 calls; what is left of the torture"
    assert "  reproducer.c: 4 calls" in "\n".join(torture_runs.lines([case]))


def test_one_call_is_enough_where_it_goes_wrong_alone(fuzzed: Fuzzed) -> None:
    (case,) = fuzzed(needed=1)
    assert case.calls == 1
    assert "reproducer.c: 1 call" in "\n".join(torture_runs.lines([case]))


def test_calls_that_never_go_wrong_again_are_kept_whole_and_said_to_be_so(fuzzed: Fuzzed) -> None:
    (case,) = fuzzed(needed=100)
    assert (case.outcome, case.calls, case.reproduces) == ("oops", 9, False)
    assert case.reproducer is not None and "not seen to go wrong again" in case.reproducer.read_text()
    assert "reproducer.c: 9 calls, not seen to go wrong again" in "\n".join(torture_runs.lines([case]))


def test_another_crash_is_not_the_same_one(fuzzed: Fuzzed) -> None:
    other = tuple(line.replace("hello_init", "hello_exit") for line in OOPS)
    (case,) = fuzzed(needed=1, again=Act(kernel=other))
    assert (case.calls, case.reproduces) == (9, False)


def test_a_guest_that_died_without_a_word_is_asked_again_call_by_call(fuzzed: Fuzzed, world: World) -> None:
    (case,) = fuzzed(Act(ends="lost"), needed=1)
    assert (case.outcome, case.reproducer) == ("lost", None)
    assert sum(" careful" in line for line in world.lines) == 1


def test_a_guest_that_died_gets_a_program_of_what_it_said_before(fuzzed: Fuzzed) -> None:
    (case,) = fuzzed(Act(ends="lost", output=CALLS), needed=2, again=Act(ends="lost"))
    assert (case.outcome, case.calls, case.reproduces) == ("lost", 2, True)


def test_a_crash_without_calls_has_no_program(fuzzed: Fuzzed) -> None:
    (case,) = fuzzed(Act(kernel=OOPS, output="call 1 system 0 0x0 0x0 0x0 0x0 0 -\n"))
    assert (case.outcome, case.reproducer) == ("oops", None)


def test_names_of_the_guest_s_own_never_get_into_the_program(fuzzed: Fuzzed) -> None:
    evil = CALLS.replace("HELLO_SET", "EVIL").replace("calls, taint", "calls, */ \x1b[2J")
    (case,) = fuzzed(Act(kernel=OOPS, output=evil), needed=1)
    assert case.reproducer is not None
    text = case.reproducer.read_text()
    assert "EVIL" not in text and "\x1b" not in text


def test_a_module_without_that_device_is_told_so(fuzzed: Fuzzed) -> None:
    (case,) = fuzzed(Act(code=6))
    assert case.outcome == "test-failed"
    assert case.run is not None and "did not make the device that `fuzz:`" in (case.run.reason or "")


def test_a_missing_header_is_one_error(fuzzed: Fuzzed) -> None:
    with pytest.raises(ConfigError, match="cannot read the header"):
        fuzzed(fuzz=dataclasses.replace(ONE_ROUND, ioctls=("none.h",)))


def test_a_header_outside_of_what_is_sent_is_one_error(fuzzed: Fuzzed) -> None:
    with pytest.raises(ConfigError, match=r"\.\./hello\.h lies outside of what is sent"):
        fuzzed(fuzz=dataclasses.replace(ONE_ROUND, ioctls=("../hello.h",)))


def test_a_header_that_no_program_can_include_is_one_error(fuzzed: Fuzzed) -> None:
    with pytest.raises(ConfigError, match=r"cannot be compiled in the guest: table\.c:9: error: #error") as error:
        fuzzed(header="#define X _IO('x', 1)\n", fuzz=dataclasses.replace(ONE_ROUND, ioctls=("broken_#error.h",)))
    assert "\x1b" not in error.value.message and "__KERNEL__" in (error.value.hint or "")
