"""Measure how fast a log is judged, and in how much memory."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.frame import Figure
from benchmarks.world import REPOSITORY, World

_LINES = 100_000
_SAMPLE = "null-deref-read-6.12"
_JUDGE = r"""
import re, sys, time
from kmlab.diagnosis.saved_log import judge_file
assert [crash.class_ for crash in judge_file(sys.argv[1]).crashes] == ["null-dereference"]
peak = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]
print(time.process_time(), int(peak) / 1024)
"""
_MATCH = r"""
import re, sys, time
prefix = re.compile(rb"<(\d+)>\[ *(\d+\.\d+)\]\[ *([TC]\d+)\] (.*)")
with open(sys.argv[1], "rb") as log:
    assert sum(1 for line in log if prefix.match(line)) > 1000
print(time.process_time(), 0)
"""


def judge(world: World) -> float:
    """Measure the CPU seconds for a log of a hundred thousand lines with one crash, including the program's start."""
    return _measured(world, _JUDGE, _LINES)[0]


def match(world: World) -> float:
    """Measure the same for one regular expression over the lines, with nothing kept."""
    return _measured(world, _MATCH, _LINES)[0]


def hold_much(world: World) -> float:
    """Measure the peak memory in MiB for a flood of 100 MB."""
    return _measured(world, _JUDGE, 14 * _LINES)[1]


def hold_little(world: World) -> float:
    return _measured(world, _JUDGE, _LINES // 10)[1]


def _measured(world: World, program: str, lines: int) -> tuple[float, float]:
    _, output = world.run([sys.executable, "-c", program, _log(world, lines)])
    seconds, memory = map(float, output.split())
    return seconds, memory


def _log(world: World, lines: int) -> Path:
    """Write a flood of this many lines after a crash, once."""
    path = world.folder / f"flood-{lines}.log"
    if not path.exists():
        sample = (REPOSITORY / "tests" / "data" / "oops" / f"{_SAMPLE}.txt").read_bytes()
        crash = b"".join(line for line in sample.splitlines(keepends=True) if not line.startswith(b"# expect:"))
        with path.open("wb") as file:
            file.write(crash)
            for number in range(lines):
                time = f"{number // 1000:5}.{number % 1000:03}000"
                file.write(f"<6>[{time}][  T512] larva: line {number} says nothing in particular\r\n".encode())
    return path


FIGURES = (
    Figure(
        name="judge 100,000 lines",
        what="CPU for judging a log of 100,000 lines",
        companion="one regular expression over its lines",
        target=12,
        ours=judge,
        theirs=match,
    ),
    Figure(
        name="judge 100 MB",
        what="most memory while judging a flood of 100 MB",
        companion="the same for its first megabyte",
        target=1.2,
        ours=hold_much,
        theirs=hold_little,
        rounds=1,
    ),
)
