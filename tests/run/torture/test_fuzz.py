"""The program of fuzzing is compiled by this host's compiler, and calls files that are harmless."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kmlab.config import catalog
from kmlab.run.torture.fuzz import DEVICE_ABSENT, FuzzTarget, ioctl_names, numbers, seed_of, table
from kmlab.run.torture.fuzz_calls import FuzzCall, ends, parse_fuzz_log
from kmlab.run.torture.reproducer import c_program

HEADER = r"""
#include <linux/ioctl.h>
#define LIMIT 24 /* not 25 */
#define RING_GET _IOR('r', 1, struct ring)
# define RING_SET   _IOW('r', 2, \
	__u32)
#define RING_RESET	_IO ('r', 3)
// #define RING_OLD _IO('r', 4)
/* #define RING_OLDER
_IO('r', 5) */
#define RING_MAGIC 'r'
#define RING_BOTH (_IOWR(RING_MAGIC, 0x6, u64))
struct ring { __u32 index; u64 value; };
"""
NAMES = ["RING_GET", "RING_SET", "RING_RESET", "RING_BOTH"]
Fuzz = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Fuzz:
    """Run the compiled program."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "ring.h").write_text(HEADER)
    (folder / "table.c").write_text(table(["ring.h"], NAMES, numbers([HEADER])))
    (folder / "fuzz.c").write_text(catalog.fuzz_source())
    argv = ["gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-I", str(folder), "-o", str(folder / "fuzz")]
    subprocess.run([*argv, str(folder / "fuzz.c"), str(folder / "table.c")], check=True)

    def fuzz(device: Path | str, seed: int = 1, calls: int = 300, *more: str) -> subprocess.CompletedProcess[str]:
        words = [str(folder / "fuzz"), str(device), str(seed), str(calls), "20", *more]
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)

    return fuzz


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """Return a new file."""
    (tmp_path / "file").touch()
    return tmp_path / "file"


def test_names_of_ioctls_are_those_that_the_header_defines() -> None:
    assert ioctl_names(HEADER) == NAMES
    assert ioctl_names("#define X_CMD(n) _IO('x', n)", "#define Y Z") == []


def test_numbers_of_sources_are_limits_to_try() -> None:
    assert numbers([HEADER, "char name[0x40u]; x = 1.5; y2 = 99999999999999999999;"]) == [1, 2, 3, 6, 24, 64]


def test_the_same_seed_makes_the_same_calls_and_another_seed_others(fuzz: Fuzz, empty: Path) -> None:
    runs = []
    for seed in (1, 1, 2):
        empty.write_bytes(b"")
        runs.append(fuzz(empty, seed, 300, "careful").stdout)
    assert runs[0] == runs[1] != runs[2]
    log = parse_fuzz_log(runs[0], NAMES)
    assert [call.number for call in log.calls] == list(range(1, 301)), "every line is understood"
    assert {call.kind for call in log.calls} == {"open", "close", "read", "write", "lseek", "ioctl", "mmap"}
    assert sorted(log.names.values()) == sorted(NAMES)
    assert log.names[0x40047202] == "RING_SET"


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full"])
def test_the_program_is_bounded_and_survives_its_own_calls(fuzz: Fuzz, device: str) -> None:
    ended = fuzz(device, 5, 3000)
    assert ended.returncode == 0
    assert ended.stdout.endswith("3000 calls, end\n"), ended.stdout[-200:]


def test_a_device_that_never_answers_delays_no_call_for_long(fuzz: Fuzz) -> None:
    master, slave = pty.openpty()
    try:
        ended = fuzz(os.ttyname(slave), 3, 100)
    finally:
        os.close(master)
        os.close(slave)
    assert "100 calls" in ended.stdout


def test_a_file_does_not_grow_without_limit(fuzz: Fuzz, empty: Path) -> None:
    fuzz(empty, 4, 2000)
    assert empty.stat().st_size <= 1 << 24


def test_a_missing_device_has_a_code_of_its_own(fuzz: Fuzz, tmp_path: Path) -> None:
    assert fuzz(tmp_path / "none").returncode == DEVICE_ABSENT


@pytest.mark.parametrize(
    "line",
    [
        "call 1 ioctl 3 0x1 0x0 0x0 0x0 0 -",
        "call 1 system 0 0x1 0x0 0x0 0x0 0 -",
        'call 1 ioctl 0 0x1"); system("x 0x0 0x0 0x0 0 -',
        "call 1 write 0 0x20000000 0x4 0x0 0x0 4 zz",
        "call 1 write 0 0x1fffffff 0x4 0x0 0x0 4 00",
        "call 1 write 0 0x2000fffe 0x4 0x0 0x0 4 00",
        "call 1 write 0 0x20000000 0x4 0x0 0x0 4 -",
        "call 1 write 0 0x20000000 0x4 0x0 0x0 4 " + "00" * 129,
        "call \u0661 close 0 0x0 0x0 0x0 0x0 0 -",
        " call 1 close 0 0x0 0x0 0x0 0x0 0 -",
    ],
)
def test_a_line_that_the_program_does_not_print_is_no_call(line: str) -> None:
    assert parse_fuzz_log(f"{line}\n", NAMES).calls == ()


def test_what_the_guest_prints_has_limits() -> None:
    lines = [f"call {number} close 0 0x0 0x0 0x0 0x0 0 -" for number in range(1, 3000)]
    log = parse_fuzz_log("name EVIL 0x1\nname RING_GET 0x2\nname RING_SET 0x2\n" + "\n".join([*lines, lines[0]]), NAMES)
    assert [call.number for call in log.calls] == list(range(1976, 3000))
    assert log.names == {2: "RING_GET"}


def test_the_ends_of_the_calls_double() -> None:
    calls = tuple(FuzzCall(number, "close", 0, (0, 0, 0, 0)) for number in range(11))
    assert [len(end) for end in ends(calls)] == [1, 2, 4, 8, 11]
    assert all(end[-1] == calls[-1] for end in ends(calls))
    assert list(ends(())) == []


def test_the_c_program_makes_the_same_system_calls(fuzz: Fuzz, empty: Path, tmp_path: Path) -> None:
    log = parse_fuzz_log(fuzz(empty, 7, 200, "careful").stdout, NAMES)
    text = c_program(str(empty), log.calls, log.names, ["BUG */ in @CALLS@ \\", "\x1b[2J"])
    (tmp_path / "reproducer.c").write_text(text)
    subprocess.run(["gcc", "-w", "-o", tmp_path / "reproducer", tmp_path / "reproducer.c"], check=True)
    after_fuzzing = empty.read_bytes()
    empty.write_bytes(b"")
    ended = subprocess.run([tmp_path / "reproducer"], check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    assert ended.stdout.split("\n")[:-1] == [f"call {number}" for number in range(1, 201)]
    assert empty.read_bytes() == after_fuzzing != b""
    assert "/* RING_SET */" in text and "\x1b" not in text and " * BUG * / in (at)CALLS(at)" in text


def test_each_round_has_a_seed_of_its_own() -> None:
    assert len({seed_of(seed, number) for seed in (1, 2) for number in range(1, 10)}) == 18
    target = FuzzTarget("/dev/ring", 2)
    assert "/dev/ring 10001 " in target.command(1, 1) and "careful" not in target.command(1, 1)
