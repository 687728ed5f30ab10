"""The JSON of a run, to the letter of the public interface."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import cast

import pytest

from kmlab.common.events import Part
from kmlab.config.lab import Expect
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.parser.scanner import Scanner
from kmlab.kernel.crash.stack_trace import Frame, Section
from kmlab.kernel.log.records import Record, parse_log
from kmlab.run.context.results import StepResult
from kmlab.run.documents import FramePlace
from kmlab.run.result import (
    LOG_CAP,
    WORST_LAST,
    RunResult,
    crash_to_json,
    document,
    to_json,
    unmet_crash,
    unmet_log,
    worst,
)
from tests.places import TEST_DATA

OOPS = TEST_DATA / "oops" / "null-deref-read-6.12.txt"
KEYS = {
    *("module", "source", "guest", "kernel", "outcome", "expected", "ok", "title", "crashes", "reason"),
    *("diagnostics", "taint", "log", "log_truncated", "steps", "guest_survived", "seconds", "artifacts"),
}
CRASH_KEYS = {"kind", "title", "module", "function", "file", "line", "fingerprint", "frames", "sections"}
FRAME_KEYS = {"function", "offset", "size", "module", "file", "line", "inlined"}


def record(text: str, time: float | None = 1.0) -> Record:
    return Record(time, "info", text, None, 0)


def crash() -> Crash:
    text = OOPS.read_bytes()
    scanner = Scanner()
    scanner.feed(parse_log(text).records)
    scanner.close()
    return scanner.crashes[0]


def test_every_key_of_the_interface_is_there_when_nothing_happened() -> None:
    made = to_json(RunResult(module="hello", source="examples/hello", guest="debian"))
    assert set(made) >= KEYS
    assert {name: value for name, value in made.items() if name in KEYS} == {
        "module": "hello",
        "source": "examples/hello",
        "guest": "debian",
        "kernel": None,
        "outcome": "pass",
        "expected": "pass",
        "ok": True,
        "title": None,
        "crashes": [],
        "reason": None,
        "diagnostics": [],
        "taint": {"before": [], "after": []},
        "log": [],
        "log_truncated": 0,
        "steps": [],
        "guest_survived": True,
        "seconds": 0.0,
        "artifacts": {"directory": None, "console": None, "kernel_log": None, "build_log": None, "vmcore": None},
    }


def test_a_run_with_everything_is_as_the_interface_has_it() -> None:
    made = to_json(
        RunResult(
            module="hello",
            source="examples/hello",
            guest="debian",
            kernel="6.1.0-56-cloud-amd64",
            outcome="load-failed",
            title="a title",
            reason="a reason",
            diagnostics=(Diagnostic(file="nullread.c", line=9, column=5, severity="error", message="no"),),
            taint_after=(1 << 12) | (1 << 13),
            tainted_by={12: "load", 13: "load"},
            modules_before=frozenset({"loop"}),
            log=(record("Hello, world.", 105.19),),
            lost_records=3,
            steps=(StepResult("sync", "ok", 0.08123, "1 sent", 0.5),),
            guest_parts=(Part("restore", 0.01234, 0.4),),
            guest_survived=False,
            seconds=3.40049,
            directory=Path("/runs/one"),
            console="console.log",
            kernel_log="dmesg.txt",
            build_log="build.log",
        )
    )
    assert made["expected"] == "pass"
    assert made["ok"] is False
    assert made["diagnostics"] == [{"file": "nullread.c", "line": 9, "column": 5, "severity": "error", "message": "no"}]
    assert made["taint"] == {"before": [], "after": ["OOT_MODULE", "UNSIGNED_MODULE"]}
    assert made["taint_set_by"] == {"OOT_MODULE": "load", "UNSIGNED_MODULE": "load"}
    assert made["modules"] == {"before": ["loop"], "after": None}
    assert made["log"] == [{"time": 105.19, "level": "info", "text": "Hello, world."}]
    assert made["log_truncated"] == 3
    step = {"name": "sync", "outcome": "ok", "began": 0.5, "seconds": 0.081, "detail": "1 sent"}
    assert made["steps"] == [step]
    assert made["guest_parts"] == [{"name": "restore", "began": 0.012, "seconds": 0.4}]
    assert made["seconds"] == 3.4
    assert made["artifacts"] == {
        "directory": "/runs/one",
        "console": "console.log",
        "kernel_log": "dmesg.txt",
        "build_log": "build.log",
        "vmcore": None,
    }


def test_a_crash_and_its_frames_have_every_key() -> None:
    found = crash()
    made = to_json(RunResult(module="m", source="s", guest="g", crashes=(found,)))["crashes"][0]
    assert set(made) >= CRASH_KEYS
    assert (made["kind"], made["title"], made["function"]) == (found.kind, found.title, found.function)
    assert made["frames"]
    assert all(set(frame) == FRAME_KEYS for frame in made["frames"])
    first: Frame = found.frames[0]
    assert made["frames"][0]["function"] == first.function


def test_a_section_has_the_place_of_the_module_in_it() -> None:
    found = crash()
    taker = Frame("take", 9, 20, found.module, reliable=True, exact=False, file="m.c", line=7)
    helper = Frame("kmalloc_trace", 9, 20, None, reliable=True, exact=False)
    section = Section("allocated", (helper, taker), "insmod", 512, 1, 33, None)
    made = dict(crash_to_json(dataclasses.replace(found, sections=(section,)))["sections"][0])
    assert [frame["function"] for frame in cast(list[FramePlace], made.pop("frames"))] == ["kmalloc_trace", "take"]
    assert made == {
        **{"name": "allocated", "task": "insmod", "pid": 512, "cpu": 1, "age": 33, "time": None},
        **{"module": found.module, "function": "take", "file": "m.c", "line": 7},
    }


def test_the_document_names_its_schema_and_is_json() -> None:
    results = [RunResult(module="a\u202e\udcff", source="s", guest="g", log=(record("\u2028"),))]
    text = json.dumps(document(results))
    assert json.loads(text)["schema"] == "kmlab.run/1"
    assert [r["module"] for r in json.loads(text)["results"]] == ["a\u202e\udcff"]


def test_several_expected_outcomes_are_a_list() -> None:
    expect = Expect(outcome=("oops", "panic"))
    made = to_json(RunResult(module="m", source="s", guest="g", outcome="panic", expect=expect))
    assert (made["expected"], made["ok"]) == (["oops", "panic"], True)


def test_a_flood_is_capped_and_counted() -> None:
    log = tuple(record(str(number)) for number in range(LOG_CAP + 10))
    made = to_json(RunResult(module="m", source="s", guest="g", log=log, lost_records=5))
    assert len(made["log"]) == LOG_CAP
    assert made["log_truncated"] == 15
    assert (made["log"][0]["text"], made["log"][-1]["text"]) == ("0", str(LOG_CAP + 9))


def test_the_worst_outcome_wins_in_the_interface_s_order() -> None:
    order = "pass skipped warning test-failed unload-failed load-failed build-failed oops hang panic lost error"
    assert " ".join(WORST_LAST) == order
    assert worst([]) == "pass"
    assert worst(["warning", "lost", "oops"]) == "lost"


@pytest.mark.parametrize(
    ("expect", "outcome", "missed"),
    [
        (Expect(log=("Hello",)), "pass", []),
        (Expect(log=("/^Hello, w/",)), "pass", []),
        (Expect(log=("absent",)), "pass", ["expected in the log: absent"]),
        (Expect(not_log=("Hello",)), "pass", ["not expected in the log: Hello"]),
        (Expect(outcome=("oops",), function="f"), "oops", ["expected the guilty function f, found none"]),
        (Expect(outcome=("oops",), kind="oops"), "oops", ["expected a finding of kind oops, found none"]),
        (Expect(outcome=("oops",), function="f"), "pass", []),
    ],
)
def test_an_expectation_that_was_not_met_is_a_sentence(expect: Expect, outcome: str, missed: list[str]) -> None:
    found = [*unmet_crash(expect, outcome, ()), *unmet_log(expect, [record("Hello, world.")])]
    assert found == missed


def test_the_guilty_function_and_the_fine_kind_are_recognised() -> None:
    found = crash()
    expect = Expect(outcome=("oops",), function=found.function, kind=found.class_)
    assert unmet_crash(expect, "oops", [found]) == []
    assert found.kind == "oops"


def test_a_skipped_run_is_as_expected_where_a_pass_is() -> None:
    skipped = RunResult(module="m", source="m", guest="g", outcome="skipped")
    assert skipped.ok
    assert not RunResult(module="m", source="m", guest="g", outcome="skipped", expect=Expect(outcome=("oops",))).ok
    assert worst(["pass", "skipped"]) == "skipped" and worst(["skipped", "warning"]) == "warning"
