"""Whatever is done to a log, judging it raises nothing, keeps to its caps and says the same in pieces."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmlab.diagnosis.saved_log import hear
from kmlab.kernel.crash.crash import Crash, outcome_of
from kmlab.kernel.crash.parser.scanner import Scanner, find_crashes
from kmlab.kernel.log.records import LINE_CAP, ConsoleReader, parse_log
from tests.places import TEST_DATA

CORPUS = [p.read_bytes()[:20000] for p in sorted((TEST_DATA / "oops").glob("*.txt"))]
LINES = [line for data in CORPUS for line in data.splitlines(keepends=True)]
QUICK = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def check(data: bytes, cut: int) -> None:
    log = parse_log(data)
    crashes = find_crashes(log.records)
    for record in log.records:
        assert len(record.text) <= LINE_CAP
        check_clean(record.text.replace("\t", ""))
    for crash in crashes:
        check_crash(crash)
    reader, scanner = ConsoleReader(pasted=True), Scanner()
    pieces = []
    for start in range(0, len(data), cut):
        records = reader.feed(data[start : start + cut])
        pieces += records
        scanner.feed(records)
    last = reader.close()
    scanner.feed(last)
    scanner.close()
    if any(r.from_kernel or r.facility is not None for r in pieces + last):
        assert tuple(pieces + last) == log.records
        assert scanner.crashes == crashes
    assert reader.dropped == log.dropped
    check_heard(data)


def check_heard(data: bytes) -> None:
    """As `kmlab crashes` reads a saved log: perhaps backwards, or with something before its lines."""
    heard = hear(io.BytesIO(data))
    for crash in heard.crashes:
        check_crash(crash)
    unread = heard.survey.unread
    assert unread is None or unread.lines > 0


def check_crash(crash: Crash) -> None:
    assert outcome_of(crash) in ("panic", "oops", "warning", "hang")
    assert crash.title
    assert len(crash.title) < 600
    check_clean(crash.title)
    check_clean(crash.text.replace("\n", "").replace("\t", ""))
    check_clean(crash.function or "")
    assert len(crash.text) <= 4 * LINE_CAP
    assert all(len(line) <= LINE_CAP for line in crash.text.split("\n"))


def check_clean(text: str) -> None:
    assert text.isprintable(), ascii(text[:200])


@QUICK
@given(st.integers(0, 2**32), st.integers(1, 300))
def test_a_damaged_log_is_read_all_the_same(seed: int, cut: int) -> None:
    check(damaged(random.Random(seed)), cut)


@QUICK
@given(st.lists(st.sampled_from(LINES), max_size=60), st.integers(1, 300))
def test_lines_of_many_reports_in_any_order_are_read(lines: list[bytes], cut: int) -> None:
    check(b"".join(lines), cut)


@QUICK
@given(st.binary(max_size=3000), st.integers(1, 50))
def test_bytes_that_are_no_log_are_read(data: bytes, cut: int) -> None:
    check(data, cut)


@pytest.mark.parametrize("data", CORPUS[:: max(1, len(CORPUS) // 20)])
def test_a_log_cut_off_anywhere_is_read(data: bytes) -> None:
    for end in range(0, len(data), max(1, len(data) // 25)):
        check(data[:end], 64)
        check(data[end:], 64)


def _json_line(line: bytes) -> bytes:
    text = line.decode("utf-8", "replace")
    return json.dumps({"MESSAGE": text, "_TRANSPORT": "kernel", "PRIORITY": "4"}).encode() + b"\n"


PASTES: tuple[Callable[[bytes], bytes], ...] = (
    *(
        lambda line, before=before: before + line
        for before in (
            *(
                b"> ",
                b"> > ",
                b"    ",
                b"\t",
                b"Mar 07 08:15:31 host kernel: ",
                "3\u6708 07 08:15:31 kernel: ".encode(),
            ),
            *(b"2025-03-07T08:15:31,123456+01:00 ", b"[Fri Mar  7 08:15:31 2025] ", b"kernel: ", b"kern  :warn  : "),
            *(b"<4>1 2025-03-07T08:15:31Z host kernel - - - ", b"1.2.3.4: kern: warning: [2025-03-07T08:15:31Z]: "),
            *(b"03-07 08:15:31.123     0     0 E BUG : ", b"[   12.000001] [2: insmod:  812] ", b"@12/x ", b"|  | "),
            *(
                b"08:15:31 ",
                b"[08:15:31] ",
                b"[  +0,000012] ",
                b"[   12.000001 <    0.000012>] ",
                b"{",
                b"    MESSAGE=",
            ),
        )
    ),
    lambda line: line.rstrip(b"\n") + b" ",
    lambda line: line.replace(b" ", b"&nbsp;").replace(b"<", b"&lt;"),
    _json_line,
    lambda line: b"__CURSOR=s=a\n_TRANSPORT=kernel\nMESSAGE=" + line + b"\n",
    lambda line: b"Fri 2025-03-07 08:15:31 CET [s=a;i=1;]\n    _TRANSPORT=kernel\n    MESSAGE=" + line,
    lambda line: b'{\n\t"MESSAGE" : ' + json.dumps(line.decode("utf-8", "replace")).encode() + b"\n}\n",
    lambda line: line.replace(b" ", b"\n", 1),
)
"""What people and programs do to each line of a log."""


def pasted(data: bytes, chance: random.Random) -> bytes:
    """A log as somebody sent it: each line behind something, perhaps all backwards."""
    do = chance.choice(PASTES)
    lines = [do(line) for line in data.splitlines(keepends=True)]
    return b"".join(reversed(lines) if chance.randrange(4) == 0 else lines)


def damaged(chance: random.Random) -> bytes:
    """A saved log with bytes flipped, pieces cut out, doubled, moved or taken from another log."""
    log = chance.choice(CORPUS)
    data = bytearray(pasted(log, chance) if chance.randrange(2) else log)
    for _ in range(chance.randint(1, 12)):
        if not data:
            break
        at, length = chance.randrange(len(data)), chance.randint(1, 200)
        match chance.randrange(7):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                other = chance.choice(CORPUS)
                start = chance.randrange(max(1, len(other)))
                data[at:at] = other[start : start + 10 * length]
            case 4:
                data[at:at] = chance.randbytes(length)
            case 5:
                data[at:at] = chance.choice([b"\n", b"\x1b[", b"\x1b]0;", b"\x00", b"<0>[", b" [#1]", b"BUG: ", b"\r"])
            case _:
                del data[at:]
    return bytes(data)
