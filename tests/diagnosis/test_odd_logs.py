"""Logs that are pipes, devices, or files of the kernel: each is read, or is one clear error at once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.diagnosis import saved_log
from kmlab.diagnosis.saved_log import judge_file
from tests.places import TEST_DATA

OOPS = TEST_DATA / "oops" / "null-deref-read-6.12.txt"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_a_device_is_no_log(device: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(device)
    for name in (device, str(tmp_path / "link")):
        with pytest.raises(ConfigError, match="this is no kernel log: it is a device or a socket"):
            judge_file(name)


def test_a_pipe_that_somebody_writes_is_a_log(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(OOPS.read_bytes()), daemon=True).start()
    assert judge_file(str(pipe)).crashes


def test_a_pipe_without_a_writer_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_log, "_FIRST_WORD", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="nothing comes out of this pipe"):
        judge_file(str(pipe))


def test_a_pipe_without_an_end_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_log, "_LARGEST_PIPE", 4 << 20)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def flood() -> None:
        handle = os.open(pipe, os.O_WRONLY)
        try:
            while True:
                os.write(handle, b"x" * 65536)
        except BrokenPipeError:
            os.close(handle)

    threading.Thread(target=flood, daemon=True).start()
    with pytest.raises(ConfigError, match="more than 4 MiB come out of it"):
        judge_file(str(pipe))


def test_a_file_of_proc_is_read_to_its_end() -> None:
    assert judge_file("/proc/version").crashes == ()
