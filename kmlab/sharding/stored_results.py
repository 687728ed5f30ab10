"""Read results from the JSON documents that other machines wrote, for reports and for a merge.

The files may come from anywhere: what is not a result is one clear error, and no path in them is followed out of the
folder that the command runs in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast, get_args

from kmlab.common.errors import ConfigError
from kmlab.common.events import Part, printable
from kmlab.config.lab import Expect, Outcome
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.stack_trace import Frame, Section
from kmlab.kernel.ktap.case_results import Case, Expectation, Status, TestOutput
from kmlab.kernel.log.records import LEVELS, Record
from kmlab.kernel.log.taint import taint_names
from kmlab.kernel.module.bound_devices import Driver
from kmlab.run.context.results import ExerciseStepResult, StepResult
from kmlab.run.documents import Result, RunRow
from kmlab.run.result import Collected, RunResult
from kmlab.sharding.dealing import RowName

_LARGEST = 1 << 30
"""Bytes of a file of results that is read."""
_BITS = {taint_names(1 << bit)[0]: bit for bit in range(64)}
_SCHEMA = "kmlab.run/1"


class StoredRun(NamedTuple):
    """One result of a file."""

    json: Result
    """As the file has it."""
    result: RunResult
    file: Path

    @property
    def row(self) -> RowName:
        return RowName(self.result.module, self.result.guest)


class StoredFile(NamedTuple):
    """What one file says."""

    path: Path
    runs: tuple[StoredRun, ...]
    planned: tuple[RowName, ...]
    """The rows of the whole plan, if the file is a shard's."""


def read_results(path: Path, sources: Path) -> StoredFile:
    """Read a file with one or several kmlab.run/1 documents. Raise ConfigError if it has anything else.

    `sources` is the folder in which the modules' sources are looked for, for excerpts.
    """
    runs: list[StoredRun] = []
    planned: dict[RowName, None] = {}
    for document in _documents(path):
        try:
            if document["schema"] != _SCHEMA:
                raise ValueError(f"its schema is {document['schema']}")
            runs += [StoredRun(each, _result(each, sources), path) for each in document["results"]]
            shard = document.get("shard")
            rows = [*(shard["planned"] if shard else ()), *document.get("missing", ())]
            planned |= dict.fromkeys(RowName(_text(row["module"]), _text(row["guest"])) for row in rows)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            about = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(
                f"{printable(str(path))}: not a {_SCHEMA} document: {printable(about, 200)}",
                "give files that `kmlab test --json` or `--report FILE.json` wrote",
            ) from None
    return StoredFile(path, tuple(runs), tuple(planned))


def row_json(row: RowName) -> RunRow:
    return {"module": row.module, "guest": row.guest}


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON documents of a file: one, or one in each line. A last line that is cut off is left out."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST).decode("utf-8", "replace")
    except OSError as error:
        raise ConfigError(f"{printable(str(path))}: cannot read: {error.strerror}", "name files of results") from None
    if path.suffix == ".jsonl":
        *lines, last = text.split("\n")
        for number, line in enumerate(filter(str.strip, lines), 1):
            yield _parsed(line, path, f" in line {number}")
        if last.strip():
            try:
                yield json.loads(last)
            except ValueError:
                return  # the machine was lost while it wrote
    else:
        yield _parsed(text, path, "")


def _parsed(text: str, path: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{printable(str(path))}: no JSON document{where}", "give files that kmlab wrote, whole")
    return value


# --- one result ----------------------------------------------------------------------------------------------------


def _result(value: Mapping[str, Any], sources: Path) -> RunResult:
    outcome = _word(value["outcome"], get_args(Outcome))
    expected = value["expected"] if isinstance(value["expected"], list) else [value["expected"]]
    source = _text(value["source"])
    artifacts = value["artifacts"]
    return RunResult(
        module=_text(value["module"]),
        source=source,
        folder=_folder(sources, source),
        guest=_text(value["guest"]),
        kernel=_optional(value["kernel"]),
        outcome=outcome,
        expect=Expect(outcome=tuple(cast(Any, _word(word, get_args(Outcome))) for word in expected)),
        unmet=_texts(value["unmet"]),
        title=_optional(value["title"]),
        crashes=tuple(_crash(each) for each in value["crashes"]),
        notes=_texts(value["notes"]),
        reason=_optional(value["reason"]),
        failure=_optional(value["failure"]),
        diagnostics=tuple(_diagnostic(each) for each in value["diagnostics"]),
        tests=_tests(value["tests"]),
        taint_before=_mask(value["taint"]["before"]),
        taint_after=_mask(value["taint"]["after"]),
        tainted_by={_BITS[name]: _text(step) for name, step in value["taint_set_by"].items() if name in _BITS},
        modules_before=frozenset(_texts(value["modules"]["before"])),
        modules_after=None if value["modules"]["after"] is None else frozenset(_texts(value["modules"]["after"])),
        log=tuple(_record(each) for each in value["log"]),
        lost_records=_whole(value["log_truncated"]),
        steps=tuple(_steps(value["steps"], value["exercises"])),
        guest_parts=tuple(
            Part(_text(part["name"]), float(part["began"]), float(part["seconds"])) for part in value["guest_parts"]
        ),
        guest_survived=bool(value["guest_survived"]),
        seconds=float(value["seconds"]),
        directory=Path(_text(artifacts["directory"])) if artifacts["directory"] else None,
        console=_optional(artifacts["console"]),
        kernel_log=_optional(artifacts["kernel_log"]),
        build_log=_optional(artifacts["build_log"]),
        vmcore=_optional(artifacts["vmcore"]),
        drivers=tuple(
            Driver(_text(each["module"]), _text(each["bus"]), _text(each["name"]), _texts(each["devices"]))
            for each in value.get("drivers", ())
        ),
        collected=tuple(
            Collected(_text(each["path"]), _text(each["file"]).removeprefix("collected/"), _whole(each["bytes"]))
            for each in value["collected"]
        ),
    )


def _folder(sources: Path, source: str) -> Path | None:
    """Return the module's folder on this machine, if it is below `sources`; a file must not name any other one."""
    place = PurePosixPath(source)
    if place.is_absolute() or ".." in place.parts or "\0" in source:
        return None
    folder = (sources / place).resolve()
    return folder if folder.is_dir() and folder.is_relative_to(sources.resolve()) else None


def _crash(value: Mapping[str, Any]) -> Crash:
    return Crash(
        kind=_text(value["kind"]),
        class_=_text(value["class"]),
        title=_text(value["title"]),
        function=_optional(value["function"]),
        module=_optional(value["module"]),
        file=_optional(value["file"]),
        line=_optional_whole(value["line"]),
        task=_optional(value["task"]),
        pid=None,
        cpu=_optional_whole(value["cpu"]),
        frames=tuple(_frame(each) for each in value["frames"]),
        sections=tuple(_section(each) for each in value["sections"]),
        text="",
        fatal=value["kind"] == "panic",
        truncated=bool(value["truncated"]),
        fingerprint=_text(value["fingerprint"]),
        time=None,
        reason=_optional(value["reason"]),
    )


def _frame(value: Mapping[str, Any]) -> Frame:
    return Frame(
        function=_text(value["function"]),
        offset=_optional_whole(value["offset"]),
        size=_optional_whole(value["size"]),
        module=_optional(value["module"]),
        reliable=True,
        exact=True,
        file=_optional(value["file"]),
        line=_optional_whole(value["line"]),
        inlined=bool(value["inlined"]),
    )


def _section(value: Mapping[str, Any]) -> Section:
    return Section(
        name=_text(value["name"]),
        frames=tuple(_frame(each) for each in value["frames"]),
        task=_optional(value["task"]),
        pid=_optional_whole(value["pid"]),
        cpu=_optional_whole(value["cpu"]),
        age=_optional_whole(value["age"]),
        time=None if value["time"] is None else float(value["time"]),
    )


def _diagnostic(value: Mapping[str, Any]) -> Diagnostic:
    severity = _word(value["severity"], ("error", "warning"))
    return Diagnostic(
        _optional(value["file"]),
        _optional_whole(value["line"]),
        _optional_whole(value["column"]),
        cast(Any, severity),
        _text(value["message"]),
    )


def _tests(value: Mapping[str, Any]) -> TestOutput:
    return TestOutput(tuple(_case(each) for each in value["cases"]), _texts(value["problems"]))


def _case(value: Mapping[str, Any]) -> Case:
    suite, file, line = _text(value["suite"]), _optional(value["file"]), _optional_whole(value["line"])
    reason = _optional(value["reason"])
    return Case(
        path=(*(suite.split(".") if suite else ()), _text(value["name"])),
        status=cast(Status, _word(value["status"], get_args(Status))),
        reason=reason,
        expectations=(Expectation(file, line, reason or ""),) if file is not None and line is not None else (),
    )


def _record(value: Mapping[str, Any]) -> Record:
    time = None if value["time"] is None else float(value["time"])
    level = None if value["level"] is None else _word(value["level"], LEVELS)
    return Record(time, level, _text(value["text"]), None, 0)


def _steps(steps: Sequence[Mapping[str, Any]], exercises: Sequence[Mapping[str, Any]]) -> Iterator[StepResult]:
    left = list(exercises)
    for step in steps:
        name, outcome = _text(step["name"]), _text(step["outcome"])
        seconds, began, detail = float(step["seconds"]), float(step["began"]), _text(step["detail"])
        if name == "exercise" and left:
            ran = left.pop(0)
            code = _optional_whole(ran["code"])
            yield ExerciseStepResult(name, outcome, seconds, detail, began, exercise=_text(ran["name"]), code=code)
        else:
            yield StepResult(name, outcome, seconds, detail, began)


# --- values --------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _optional(value: object) -> str | None:
    return None if value is None else _text(value)


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    return tuple(_text(value) for value in values)


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _optional_whole(value: object) -> int | None:
    return None if value is None else _whole(value)


def _word(value: object, words: Sequence[str]) -> str:
    if value not in words:
        raise ValueError(f"{value!r} is not one of {', '.join(words[:12])}")
    return str(value)


def _mask(names: Sequence[object]) -> int:
    return sum(1 << _BITS[name] for name in dict.fromkeys(_texts(names)) if name in _BITS)
