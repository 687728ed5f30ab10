"""A lab of two modules in a fake world, and the last words of kernels, for tests that tell the story of a run."""

from __future__ import annotations

from collections.abc import Callable

from kmlab.common.events import Event, Note, Part
from kmlab.config.lab import Lab
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.stack_trace import Frame, Section
from kmlab.kernel.log.records import Record
from kmlab.kernel.module.bound_devices import Driver
from kmlab.provision import lifecycle
from kmlab.provision.guest import GuestRecord, read_record
from kmlab.run import result
from kmlab.run.context.results import ExerciseStepResult, StepResult
from kmlab.run.result import RunResult

PANIC = ("<0>Kernel panic - not syncing: had enough", "---[ end Kernel panic - not syncing: had enough ]---")
OOPS = (
    "<1>BUG: kernel NULL pointer dereference, address: 0000000000000000",
    "<1>#PF: supervisor read access in kernel mode",
    "<4>Oops: 0000 [#1] PREEMPT SMP NOPTI",
    "<4>CPU: 0 PID: 321 Comm: insmod Tainted: G           OE      6.1.0-0-fake-amd64 #1",
    "<4>RIP: 0010:hello_init+0x5/0x10 [hello]",
    "<4>Call Trace:",
    "<4> <TASK>",
    "<4> do_one_initcall+0x56/0x230",
    "<4> </TASK>",
    "<4>---[ end trace 0000000000000000 ]---",
)
LAB = """\
name: fake
guests:
  debian: {image: debian-12, memory: 256M}
  other: {image: debian-12, memory: 256M}
keep_runs: 3
build: guest
modules:
  params: {source: params, params: {count: 3}, exercise: ./check.sh, expect: {outcome: pass, log: ["count is 3"]}}
"""
Go = Callable[..., RunResult]


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def record_of(lab: Lab) -> GuestRecord:
    record = read_record(lifecycle.lab_files(lab).guest("debian"))
    assert record is not None
    return record


def step(result: RunResult, name: str) -> str:
    return next(s.outcome for s in result.steps if s.name == name)


def whole_result() -> result.RunResult:
    """A result in which every list has something."""
    frame = Frame("null_read", 75, 137, "oops", reliable=True, exact=True, file="oops.c", line=27)
    crash = Crash(
        kind="oops",
        class_="null-dereference",
        title="BUG",
        function="null_read",
        module="oops",
        file="oops.c",
        line=27,
        task="cat",
        pid=1,
        cpu=1,
        frames=(frame,),
        sections=(Section("allocated", (frame,), "cat", 1, 1, 33, 1.5),),
        text="",
        fatal=False,
        truncated=False,
        fingerprint="0",
        time=None,
    )
    return result.RunResult(
        module="oops",
        source="examples/oops",
        guest="debian",
        crashes=(crash,),
        diagnostics=(Diagnostic("oops.c", 12, 6, "warning", "unused"),),
        taint_after=1 << 7 | 1 << 12 | 1 << 13,
        tainted_by={7: "exercise", 12: "load", 13: "load"},
        modules_before=frozenset({"loop", "virtio_blk"}),
        log=(Record(30.1, "alert", "BUG", None, 0),),
        steps=(StepResult("load", "ok", 0.3), ExerciseStepResult("exercise", exercise="cat /proc/oops", code=137)),
        drivers=(Driver("oops", "pci", "oops", ("0000:05:00.0",)),),
        collected=(result.Collected("out/a.csv", "out_a.csv", 4),),
        guest_parts=(Part("restore", 0.0, 0.4),),
    )
