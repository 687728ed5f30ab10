"""Test what a checkpoint depends on: another CPU or another kernel of the host makes another one under KVM."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kmlab.config.lab import load_lab
from kmlab.host.hypervisor.accel import Acceleration
from kmlab.provision.bases import checkpoint
from kmlab.provision.bases.base import Base
from kmlab.provision.plan.plan import Plan, make_plan
from kmlab.testing import World

X86 = "processor\t: 0\nmodel name\t: Example\nflags\t\t: fpu vme\nmicrocode\t: 0x1\ncpu MHz\t\t: {mhz}\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: {part}\nBogoMIPS\t: 50\n"


def test_a_cpu_is_known_by_what_a_guest_can_see_of_it() -> None:
    assert checkpoint._host_cpu(X86.format(mhz=1000), "6.1") == checkpoint._host_cpu(X86.format(mhz=2000), "6.1")
    assert checkpoint._host_cpu(X86, "6.1") != checkpoint._host_cpu(X86.replace("vme", "vme avx"), "6.1")


def test_an_arm64_cpu_is_known_by_its_numbers() -> None:
    """/proc/cpuinfo has neither a model's name nor flags there."""
    digests = {checkpoint._host_cpu(ARM.format(part=part), "6.8") for part in ("0xd0c", "0xd40", "0xd40")}
    assert len(digests) == 2


def test_the_host_s_kernel_counts() -> None:
    assert checkpoint._host_cpu(X86, "6.8.0-45-generic") != checkpoint._host_cpu(X86, "6.8.0-47-generic")


@pytest.fixture
def plan(xdg: Path) -> Plan:
    (xdg / "lab.yaml").write_text("name: t\nguests:\n  g: {image: debian-12}\n")
    lab = load_lab(xdg / "lab.yaml")
    with World() as world:
        return make_plan(world.host, lab, lab.guest("g"))


def key(plan: Plan, accel: str, *, nested: bool = False) -> str:
    chosen = dataclasses.replace(plan, acceleration=Acceleration(accel, "a test", nested))
    return checkpoint.checkpoint_key(chosen, Base("base", "6.1", "key"))


def test_only_kvm_depends_on_the_host(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {accel: key(plan, accel) for accel in ("kvm", "tcg")}
    monkeypatch.setattr(checkpoint, "_host_cpu", lambda cpuinfo: "another host")
    assert key(plan, "kvm") != before["kvm"]
    assert key(plan, "tcg") == before["tcg"]


def test_other_limits_of_the_watchdogs_are_another_checkpoint(plan: Plan) -> None:
    assert key(plan, "kvm", nested=True) != key(plan, "kvm")
