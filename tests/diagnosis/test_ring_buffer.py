"""The guest's ring buffer, read in parts."""

from __future__ import annotations

from kmlab.common.errors import GuestUnreachable
from kmlab.diagnosis.ring_buffer import RingBuffer
from kmlab.host.channel.ssh import Answer

FIRST = b"6,1,100,-;one\n SUBSYSTEM=x\n6,2,200,-;two\n"
SECOND = b"6,3,300,-;three\n"


def texts(parts: list[Answer]) -> list[list[str] | None]:
    """What the log is after each part."""
    left = iter(parts)
    ring = RingBuffer(lambda seconds: next(left))
    logs = [ring.log(1) for _ in parts]
    return [None if log is None else [record.text for record in log.records] for log in logs]


def test_parts_make_one_log() -> None:
    assert texts([Answer(0, FIRST, b""), Answer(0, b"", b""), Answer(0, SECOND, b"")]) == [
        ["one", "two"],
        ["one", "two"],
        ["one", "two", "three"],
    ]


def test_a_shell_that_always_reads_everything_doubles_nothing() -> None:
    assert texts([Answer(0, FIRST, b""), Answer(0, FIRST + SECOND, b"")])[-1] == ["one", "two", "three"]


def test_a_guest_that_does_not_answer_has_no_log_and_loses_none() -> None:
    assert texts([Answer(0, FIRST, b""), Answer(None, b"", b""), Answer(0, SECOND, b"")]) == [
        ["one", "two"],
        None,
        ["one", "two", "three"],
    ]


def test_what_was_lost_once_stays_lost() -> None:
    answers = iter([Answer(32, FIRST, b""), Answer(0, SECOND, b"")])
    ring = RingBuffer(lambda seconds: next(answers))
    logs = [ring.log(1), ring.log(1)]
    assert all(log is not None and log.dropped > 0 for log in logs)


def test_an_error_of_the_channel_is_no_log() -> None:
    def fail(seconds: float) -> Answer:
        raise GuestUnreachable("gone")

    assert RingBuffer(fail).log(1) is None
