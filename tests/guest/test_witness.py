"""In real guests: what a console does not say, what a program only claims, and random numbers after a restore."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kmlab.common import paths
from tests.guest.conftest import Lab, wait_until

MODULES = Path(__file__).parents[1] / "data" / "modules"
RESTORES = 30


@pytest.fixture
def module(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A copy of the folder of tests/data/modules that the test is about."""
    return str(shutil.copytree(MODULES / request.param, tmp_path / request.param))


def state(lab: Lab) -> str:
    return str(lab("status", "--json").json["guests"][0]["state"])


@pytest.mark.parametrize("module", ["mute_console"], indirect=True)
def test_an_oops_that_mutes_the_console_is_found_with_its_line(lab: Lab, module: str) -> None:
    result = lab("run", module, "--json", code=1).result
    assert (result["outcome"], result["crashes"][0]["function"]) == ("oops", "mute_console_init")
    assert (result["crashes"][0]["file"], result["crashes"][0]["line"]) == ("mute_console.c", 14)
    assert state(lab) == "dirty"


@pytest.mark.parametrize("module", ["late_oops"], indirect=True)
@pytest.mark.parametrize("mute", ["echo N > /sys/class/tty/ttyS0/console", "dmesg --console-off", "true"])
def test_an_oops_behind_a_console_that_was_switched_off_is_found(lab: Lab, module: str, mute: str) -> None:
    exercise = f"{mute}; echo 1 > /sys/module/late_oops/parameters/go; sleep 1"
    result = lab("run", module, "--exercise", exercise, "--json", code=1).result
    assert (result["outcome"], result["crashes"][0]["function"]) == ("oops", "late_oops_thread")
    assert state(lab) == "dirty"


@pytest.mark.parametrize("module", ["late_panic"], indirect=True)
def test_a_panic_behind_a_silent_console_is_read_out_of_the_guests_memory(lab: Lab, module: str) -> None:
    exercise = "echo N > /sys/class/tty/ttyS0/console; echo 1 > /sys/module/late_panic/parameters/go; sleep 60"
    result = lab("run", module, "--exercise", exercise, "--timeout", "15", "--json", code=1).result
    assert (result["outcome"], result["crashes"][0]["function"]) == ("panic", "late_panic_thread")
    assert "too late" in result["title"]


@pytest.mark.parametrize("module", ["late_oops"], indirect=True)
def test_programs_that_were_replaced_make_no_pass(lab: Lab, module: str) -> None:
    replace = "cp /bin/true /usr/sbin/insmod; cp /bin/true /usr/sbin/rmmod; cp /bin/true /usr/bin/tail"
    result = lab("run", module, "--exercise", replace, "--json", code=1).result
    assert result["outcome"] == "unload-failed" and "still has it loaded" in result["reason"]
    assert lab("run", module, "--json").result["outcome"] == "pass", "the next run has a guest of its own"


@pytest.mark.parametrize("module", ["late_oops"], indirect=True)
def test_text_on_the_serial_port_is_no_panic(lab: Lab, module: str) -> None:
    lines = ("Kernel panic - not syncing: made up", "---[ end Kernel panic - not syncing: made up ]---")
    fake = "".join(f"echo '[   99.000001] {line}' > /dev/ttyS0; " for line in lines)
    result = lab("run", module, "--exercise", f"{fake} sleep 3", "--json").result
    assert (result["outcome"], result["guest_survived"]) == ("pass", True)


@pytest.mark.parametrize("module", ["random_numbers"], indirect=True)
def test_no_two_restored_guests_draw_the_same_random_numbers(lab: Lab, module: str) -> None:
    lab("build", module)
    user, kernel = set(), set()
    for number in range(RESTORES):
        lab("reset")
        user.add(lab("ssh", "--", "od -An -N32 -tx1 /dev/urandom").out)
        if number % 5 == 0:
            result = lab("run", module, "--json").result
            kernel |= {r["text"] for r in result["log"] if re.fullmatch(r"random_numbers: [0-9a-f]{32}", r["text"])}
    assert (len(user), len(kernel)) == (RESTORES, RESTORES / 5)


@pytest.mark.parametrize("victim", ["libvirt_worker", "qemu-system"])
def test_a_restore_that_is_killed_costs_no_checkpoint(lab: Lab, victim: str) -> None:
    key = lab("up", "--json").json["guests"][0]["checkpoint"]
    folder = paths.checkpoints() / key
    before = folder.stat().st_ino
    reset = lab.start("reset")
    place = str(lab.state / "labs" / "t-")

    def victims() -> list[int]:
        found = subprocess.run(
            ["pgrep", "-f", f"{victim}.*{place}"], capture_output=True, text=True, check=False
        ).stdout
        return [int(pid) for pid in found.split()]

    old = set(victims())
    wait_until("the one to be killed", lambda: set(victims()) - old, 60)
    time.sleep(0.1)
    for pid in set(victims()) - old:
        os.kill(pid, signal.SIGKILL)
    out, _ = reset.communicate(timeout=120)
    assert reset.returncode == 0, out
    assert folder.stat().st_ino == before
