"""Interrupts at any moment, one or several: an exit code and no traceback."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmlab.host.hypervisor import hypervisor


@pytest.mark.parametrize("seed", range(8))
def test_interrupts_in_quick_succession_leave_no_traceback(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(
        [sys.executable, "-m", "kmlab", "crashes", str(pipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        # Python's own start is not kmlab's.
        time.sleep(0.4 + chance.random() * 2)
        for _ in range(3):
            os.kill(process.pid, signal.SIGINT)
            time.sleep(chance.random() * 0.15)
        out, _ = process.communicate(timeout=60)
    assert b"Traceback" not in out and b"KeyboardInterrupt" not in out
    assert process.returncode in (130, -signal.SIGINT)


def test_a_stopped_worker_of_libvirt_does_not_outlive_its_guest(tmp_path: Path) -> None:
    root = tmp_path / "v"
    code = "import sys, time; print(flush=True); time.sleep(600)"
    argv = [sys.executable, "-c", code, "-m", "kmlab.host.hypervisor.libvirt_worker"]
    worker = subprocess.Popen([*argv, f"qemu:///embed?root={root}"], stdout=subprocess.PIPE)
    other = subprocess.Popen([*argv, f"qemu:///embed?root={root}2"], stdout=subprocess.PIPE)
    try:
        for each in (worker, other):
            assert each.stdout is not None
            each.stdout.readline()
        os.kill(worker.pid, signal.SIGSTOP)
        hypervisor.kill_workers(root)
        assert worker.wait(timeout=10) == -signal.SIGKILL
        assert other.poll() is None, "that of another guest is left alone"
    finally:
        for each in (worker, other):
            each.kill()
            each.communicate()
