"""A console without an end: the first and the last part are kept, the loss is counted, and the disk does not fill."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmlab.diagnosis import console
from kmlab.diagnosis.console import ConsoleMonitor
from tests.guest.conftest import wait_until

FIRST, LAST = 64 << 10, 256 << 10


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A console with something of an earlier run in it, and small bounds."""
    monkeypatch.setattr(console, "_FIRST_BYTES", FIRST)
    monkeypatch.setattr(console, "_LAST_BYTES", LAST)
    made = tmp_path / "console.log"
    made.write_bytes(b"earlier\n")
    return made


def test_a_short_console_is_kept_whole(file: Path) -> None:
    with ConsoleMonitor(file) as monitor, file.open("ab") as guest:
        guest.write(b"hello\n")
        guest.flush()
        assert monitor.raw() == b"hello\n"


def test_a_flood_leaves_the_first_and_the_last_and_frees_the_disk(file: Path) -> None:
    line = b"x" * 1023 + b"\n"
    with ConsoleMonitor(file) as monitor:
        with file.open("ab") as guest:
            guest.write(b"the first line\n")
            for _ in range(8):
                guest.write(line * 1024)
                guest.flush()
            guest.write(b"the last line\n")
        size = file.stat().st_size
        wait_until("the middle to be freed", lambda: file.stat().st_blocks * 512 < size // 2)
        raw = monitor.raw()
        assert raw.startswith(b"the first line\n") and raw.endswith(b"the last line\n")
        missing = size - len(b"earlier\n") - FIRST - LAST
        assert b"[kmlab: %d bytes of the console are left out here]" % missing in raw
        assert b"\0" not in raw
    assert monitor.finish(None).lost_records == 0
    assert file.read_bytes().startswith(b"earlier\nthe first line\n")
