"""First boots that go wrong: one clear error each, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

from kmlab import store
from kmlab.host import hypervisor
from tests.guest.conftest import Lab


def test_a_package_that_is_not_there_is_named(lab: Lab) -> None:
    lab.write("name: t\nguests:\n  debian: {image: debian-12, packages: [kmlab-no-such-package]}\n")
    answer = lab("up", code=3, timeout=900)
    last = [line for line in answer.err.splitlines() if line.startswith("kmlab: ")]
    assert len(last) == 1 and "could not be baked" in last[0] and "kmlab-no-such-package" in last[0], answer.err
    assert_nothing_left(lab)


def test_a_kernel_that_panics_at_boot_is_not_waited_for(lab: Lab) -> None:
    lab.write('name: t\nguests:\n  debian: {image: debian-12, cmdline: "rdinit=/nothing-here"}\n')
    answer = lab("up", code=3, timeout=900)
    last = [line for line in answer.err.splitlines() if line.startswith("kmlab: ")]
    assert len(last) == 1 and "panicked while it booted" in last[0], answer.err
    assert "Kernel panic" in (lab.state / "failed-boot.log").read_text(errors="replace")
    assert_nothing_left(lab)


def assert_nothing_left(lab: Lab) -> None:
    assert not list((lab.state / "labs").glob("t-*/debian/*"))
    assert not hypervisor.processes(store.work())
    assert not list(store.work().glob("*/disk.qcow2"))
    assert "Traceback" not in Path(lab.state / "failed-boot.log").read_text(errors="replace")
