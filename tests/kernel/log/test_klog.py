"""The kernel's log is read from every text it is saved in, in pieces or whole, in linear time."""

from __future__ import annotations

import time

import pytest

from kmlab.kernel.crash.parser.scanner import find_crashes
from kmlab.kernel.log.records import LINE_CAP, ConsoleReader, Record, parse_log


def only(line: bytes) -> Record:
    (record,) = parse_log(line).records
    return record


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"<6>[   12.345678] text", Record(12.345678, "info", "text", None, 0)),
        (b"<4>[   12.345678][  T123]  f+0x1/0x2", Record(12.345678, "warn", " f+0x1/0x2", "T123", 0)),
        (b"<30>[   12.345678] systemd[1]: hello", Record(12.345678, "info", "systemd[1]: hello", None, 3)),
        (b"[   12.3] text", Record(12.3, None, "text", None, None)),
        (b"[   12.3][    C0] text", Record(12.3, None, "text", "C0", None)),
        (b"[   12.300000] [     T1] text", Record(12.3, None, "text", "T1", None)),
        (b"[  T843] text", Record(None, None, "text", "T843", None)),
        (b"6,1234,5678901,-,caller=T1;text", Record(5.678901, "info", "text", "T1", 0)),
        (b"12,1234,5678901,-;text", Record(5.678901, "warn", "text", None, 1)),
        (b"kern  :warn  : [   12.345678] text", Record(12.345678, "warn", "text", None, 0)),
        (b"user  :notice: [   12.345678] text", Record(12.345678, "notice", "text", None, 1)),
        (b"Nov 23 20:01:02 lab kernel: text", Record(None, None, "text", None, 0)),
        (b"Nov 23 20:01:02 lab kernel: [   12.500000] text", Record(12.5, None, "text", None, 0)),
        (b"2026-11-23T20:01:02+0000 lab kernel: text", Record(None, None, "text", None, 0)),
        (b"[   12.500000] lab kernel: text", Record(12.5, None, "text", None, 0)),
        (b"[Mon Nov 23 20:01:02 2026] text", Record(None, None, "text", None, 0)),
        (b"2026-11-23T20:01:02,123456+00:00 text", Record(None, None, "text", None, 0)),
        (b"2026-11-23T20:01:02.1234567Z [   12.500000] text", Record(12.5, None, "text", None, None)),
        (b"<6>text without a time", Record(None, "info", "text without a time", None, 0)),
    ],
)
def test_each_format_is_read(line: bytes, expected: Record) -> None:
    assert only(line) == expected
    assert expected.from_kernel == (expected.facility in (None, 0))


@pytest.mark.parametrize(
    "line",
    [
        b"[\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39mgetty@tty1.service\x1b[0m - Getty on tty1.",
        b"BdsDxe: loading Boot0001 from PciRoot(0x0)/Pci(0x1,0x0)",
        b"\x1b[2J\x1b[01;01HWelcome to GRUB!",
        b"lab login: ",
        b"Nov 23 20:01:02 lab systemd[1]: Started getty.",
    ],
)
def test_what_is_not_the_kernels_is_told_apart(line: bytes) -> None:
    records = parse_log(b"<6>[    1.000000] kernel\n" + line).records
    assert [r.from_kernel for r in records] == [True, False]
    assert "\x1b" not in records[1].text


def test_a_log_without_any_prefix_is_the_kernels() -> None:
    assert all(r.from_kernel for r in parse_log(b"BUG: something\nCPU: 0 PID: 1 Comm: x\n").records)


def test_a_kernel_line_after_a_prompt_is_found() -> None:
    records = parse_log(b"lab login: <1>[   12.345678][  T9] BUG: x\n").records
    assert [r.text for r in records] == ["lab login: ", "BUG: x"]
    assert records[1][:2] == (12.345678, "alert")


def test_a_program_cannot_pass_for_the_kernel_within_its_own_line() -> None:
    record = only(b"<12>[   12.345678] oh <0>[   12.345679] Kernel panic - not syncing: no")
    assert record.facility == 1


def test_carriage_returns_and_empty_lines_leave_nothing() -> None:
    log = parse_log(b"\r\r\n<6>[    1.000000] a\r\n\n\r<6>[    1.000001] b\r\r\n")
    assert [r.text for r in log.records] == ["a", "b"]


@pytest.mark.parametrize(
    "escape",
    [
        b"\x1b[31;1m",
        b"\x1b[?25h",
        b"\x1b]0;title\x07",
        b"\x1b]8;;x\x1b\\",
        b"\x1bPq#0\x1b\\",
        b"\x1b(B",
        b"\x1b7",
    ],
)
def test_escape_sequences_are_taken_out(escape: bytes) -> None:
    assert only(b"<6>[    1.000000] a" + escape + b"b").text == "ab"


@pytest.mark.parametrize("escape", [b"\x1b[0;1", b"\x1b]0;title", b"\x1bPq", b"\x1b"])
def test_an_escape_sequence_that_lost_its_end_eats_no_message(escape: bytes) -> None:
    records = parse_log(escape + b"<1>[    1.000000] BUG: x\n").records
    assert records[-1].text == "BUG: x"
    assert records[-1].facility == 0


def test_control_characters_are_made_visible() -> None:
    record = only("<6>[    1.000000] a\x00\x07\u202eb\x9b31mc\td".encode())
    assert record.text == "a\\x00\\x07\\u202eb\\x9b31mc\td"


def test_binary_is_read_without_complaint() -> None:
    record = only(b"<6>[    1.000000] \xff\xfe\x80 ok")
    assert record.text == "\\xff\\xfe\\x80 ok"


def test_kmsg_dictionaries_are_no_records_and_its_escapes_are_undone() -> None:
    log = parse_log(
        b"6,10,1000000,-;one\\x0atwo \\xc3\\xa4\\x5c\n SUBSYSTEM=pci\n DEVICE=+pci:0000\n6,11,1000001,c;three\n"
    )
    assert [r.text for r in log.records] == ["one", "two \u00e4\\", "three"]


def test_lost_messages_are_counted() -> None:
    assert parse_log(b"<6>[    1.000000] a\n** 17 printk messages dropped **\n").dropped == 17
    assert parse_log(b"<4>[    1.000000] ** 17 printk messages dropped **\n").dropped == 17
    assert parse_log(b"<12>[    1.000000] ** 17 printk messages dropped **\n").dropped == 0
    assert parse_log(b"6,10,1,-;a\n6,15,2,-;b\n").dropped == 4


def test_a_line_over_the_cap_is_cut_and_counted() -> None:
    log = parse_log(b"<6>[    1.000000] " + b"x" * 3 * LINE_CAP + b"\n<6>[    2.000000] next\n")
    assert len(log.records[0].text) < LINE_CAP
    assert log.records[1].text == "next"
    assert log.dropped == 1


def test_a_cut_line_of_control_characters_is_not_longer_than_the_cap() -> None:
    assert len(only(b"<6>[    1.000000] " + b"\x00" * LINE_CAP).text) == LINE_CAP


def test_a_flood_without_a_newline_holds_one_line() -> None:
    reader = ConsoleReader()
    for _ in range(200):
        assert reader.feed(b"y" * 65536) == []
    (record,) = reader.close()
    assert len(record.text) == LINE_CAP
    assert reader.dropped == 1


def test_fed_in_any_pieces_it_says_the_same() -> None:
    data = (
        b"\x1b[0mBdsDxe\r\n<6>[    1.000000][  T1] caf\xc3\xa9\r\n[\x1b[32m  OK  \x1b[0m] x\r\n"
        b"6,1,2,-;a\n K=v\n6,5,3,-;b\n" + b"z" * (LINE_CAP + 5) + b"\n** 3 printk messages dropped **\nend"
    )
    whole = ConsoleReader()
    expected = whole.feed(data) + whole.close()
    for size in (1, 2, 3, 7, 64, 1000):
        reader = ConsoleReader()
        pieces = [r for i in range(0, len(data), size) for r in reader.feed(data[i : i + size])] + reader.close()
        assert pieces == expected
        assert reader.dropped == whole.dropped


@pytest.mark.parametrize(
    "nasty",
    [
        *(
            b"[" * LINE_CAP,
            b"\x1b" * LINE_CAP,
            b" " * LINE_CAP,
            b"\x1b]" * 4000,
            b"\x1bP" * 4000,
            b"<1>" * 2700,
        ),
        *(b"[ 1.1" * 1600, b"\x1b[0;" * 2000, b"[      " * 1000, b"1,1,1," * 1300, b"Nov 23 20:01:02 " * 500),
    ],
)
def test_hostile_lines_cost_no_more_than_others(nasty: bytes) -> None:
    began = time.process_time()
    find_crashes(parse_log((nasty + b"\n" + b"<1>[    1.000000] " + nasty + b"\n") * 25).records)
    assert time.process_time() - began < 2
