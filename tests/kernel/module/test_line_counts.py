"""What gcov prints becomes counts of the module's own lines, whatever else a guest prints."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmlab.kernel.module.line_counts import add_up, parse_line_counts

FOLDER = PurePosixPath("/var/lib/kmlab/modules/m")


def printed(file: str, *lines: tuple[int, int]) -> str:
    numbers = [{"line_number": number, "count": count, "branches": []} for number, count in lines]
    return json.dumps({"format_version": "2", "files": [{"file": file, "lines": numbers}]})


def test_lines_of_the_modules_own_files_are_counted_and_those_of_headers_are_not() -> None:
    text = "\n".join(
        [
            printed("m.c", (3, 1), (4, 0)),
            printed(f"{FOLDER}/sub/other.c", (1, 5)),
            printed("/usr/src/linux/include/linux/list.h", (9, 9)),
            printed("../../etc/passwd", (1, 1)),
        ]
    )
    assert parse_line_counts(text, FOLDER) == {"m.c": {3: 1, 4: 0}, "sub/other.c": {1: 5}}


def test_a_header_of_the_module_that_two_objects_include_is_counted_for_both() -> None:
    text = f"{printed('m.h', (3, 1))}\n{printed('m.h', (3, 2), (5, 0))}"
    assert parse_line_counts(text, FOLDER) == {"m.h": {3: 3, 5: 0}}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "{}", "[" * 100_000, "{" * 100_000, '{"files": 1}', '{"files": [1, {"file": 2, "lines": []}]}'),
        '{"files": [{"file": "m.c", "lines": [{"line_number": -1, "count": 1}]}]}',
        '{"files": [{"file": "m.c", "lines": [{"line_number": 1e99, "count": true}]}]}',
    ],
)
def test_what_is_no_count_is_passed_over(text: str) -> None:
    assert not any(parse_line_counts(text, FOLDER).values())


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    parse_line_counts(text, FOLDER)


def test_runs_add_up() -> None:
    assert add_up([{"m.c": {1: 1}}, {"m.c": {1: 2, 2: 0}, "n.c": {7: 1}}]) == {"m.c": {1: 3, 2: 0}, "n.c": {7: 1}}
