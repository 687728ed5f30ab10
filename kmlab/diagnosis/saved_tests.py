"""Judge the results of tests in a saved log: of a kernel, of a program, or of both on one console."""

from __future__ import annotations

from typing import NamedTuple

from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.diagnosis.saved_log import opened
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.parser.scanner import find_crashes
from kmlab.kernel.crash.paste import runs_backwards, turned
from kmlab.kernel.ktap.case_results import TestOutput, joined
from kmlab.kernel.ktap.crashed_case import begin_of, read_kernel_log
from kmlab.kernel.log.file_type import kind_of
from kmlab.kernel.log.records import ConsoleReader, Record

_HEAD = 1 << 16
"""Bytes from which it is seen what a file is, and which way a log runs."""


class SavedTests(NamedTuple):
    """The results of the tests in a saved log."""

    tests: TestOutput
    crashes: tuple[Crash, ...]
    """The crashes that happened during the tests."""
    notes: tuple[str, ...]
    """The crashes before and after the tests; a sentence each."""
    log: tuple[Record, ...]
    """The kernel's records."""


def judge_tests(file: str) -> SavedTests:
    """Read the results of the tests in a file ("-" is stdin). Raise ConfigError if it has none."""
    name = "stdin" if file == "-" else printable(file)
    try:
        with opened(file) as stream:
            data = stream.read()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read this log: {error.strerror}") from None
    if other := kind_of(data[:_HEAD]):
        remedy = other.remedy.replace("{}", "FILE") if other.remedy else None
        raise ConfigError(f"{name}: this is no test output: it is {other.what}", remedy)
    kernel, others = _streams(turned(data) if runs_backwards(data[:_HEAD]) else data)
    # Without a single prefix, kernel and programs are one stream.
    log, programs = (kernel, others) if kernel else (others, [])
    crashes = find_crashes(log)
    from_log = read_kernel_log(log, crashes, program=not kernel)
    from_programs = read_kernel_log(programs, (), program=True)
    tests = joined((from_log, from_programs))
    if not tests:
        hint = "KTAP begins with a line such as `KTAP version 1`; kmlab crashes finds crashes in any log"
        raise ConfigError(f"{name}: no test output in this file", hint)
    during = tuple(crash for crash in crashes if _is_during(crash, from_log, log))
    notes = tuple(
        f"outside of the tests: {crash.title} (kmlab crashes judges it)" for crash in crashes if crash not in during
    )
    return SavedTests(tests, during, notes, tuple(log))


def _streams(data: bytes) -> tuple[list[Record], list[Record]]:
    """Return the records of the kernel, and the lines of everybody else as they are."""
    reader = ConsoleReader(pasted=True)
    kernel: list[Record] = []
    others: list[Record] = []
    for line in data.split(b"\n"):
        records = reader.feed(line + b"\n")
        known = [record for record in records if record.from_kernel]
        kernel += known
        if not known and line.strip():
            text = line.decode("utf-8", "backslashreplace").rstrip()
            others.append(Record(None, None, text, None, 0))
    return kernel + [record for record in reader.close() if record.from_kernel], others


def _is_during(crash: Crash, tests: TestOutput, log: list[Record]) -> bool:
    begin = begin_of(crash, log)
    if begin is None:
        return False
    ended_early = any(running.begin <= begin for running in tests.running)
    return ended_early or any(first <= begin <= last for first, last in tests.spans)
