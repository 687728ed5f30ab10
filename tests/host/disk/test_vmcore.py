"""Test that a dump in QEMU's flattened form becomes a readable dump, or an error."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kmlab.common.errors import LabError
from kmlab.host.disk.vmcore import unflatten

PIECES = [(4096, b"second"), (0, b"KDUMP   \x06\0\0\0" + bytes(500)), (1 << 20, b"the end")]


def flattened(pieces: list[tuple[int, bytes]], end: bytes = struct.pack(">qq", -1, -1)) -> bytes:
    body = b"".join(struct.pack(">qq", at, len(content)) + content for at, content in pieces)
    return b"makedumpfile".ljust(16, b"\0") + bytes(4080) + body + end


def test_each_piece_is_written_to_its_offset_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "flat").write_bytes(flattened(PIECES))
    assert unflatten(tmp_path / "flat", tmp_path / "vmcore", 2 << 20, "6.1.0-9-amd64", "x86_64")
    assert (tmp_path / "vmcore").stat().st_mode & 0o777 == 0o600, "a guest's memory is its owner's alone"
    made = (tmp_path / "vmcore").read_bytes()
    assert made[4096:4102] == b"second"
    assert made[1 << 20 :] == b"the end"
    uts = struct.unpack_from("65s65s65s65s65s65s", made, 12)
    assert [word.rstrip(b"\0") for word in uts] == [b"Linux", b"guest", b"6.1.0-9-amd64", b"#1", b"x86_64", b"(none)"]


def test_a_dump_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flat").write_bytes(flattened(PIECES))
    assert not unflatten(tmp_path / "flat", tmp_path / "vmcore", 1 << 20, "r", "x86_64")


@pytest.mark.parametrize(
    "content",
    [b"", b"KDUMP   ", flattened(PIECES, b""), flattened(PIECES)[:-30], flattened([], struct.pack(">qq", 0, 9))],
    ids=["empty", "not flattened", "no end", "cut short", "a piece without content"],
)
def test_an_incomplete_dump_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "flat").write_bytes(content)
    with pytest.raises(LabError, match="dump"):
        unflatten(tmp_path / "flat", tmp_path / "vmcore", 2 << 20, "r", "x86_64")
