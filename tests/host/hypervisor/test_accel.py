"""Test the choice of the accelerator: a device that opens need not work."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.errors import LabError
from kmlab.common.events import Deadline
from kmlab.host.hypervisor import accel

Seconds = Callable[[str, str, Deadline], float | None]


def opens() -> None:
    """A /dev/kvm that opens."""


def fails(number: type[OSError]) -> Callable[[], None]:
    def refuse() -> None:
        raise number(13, "Permission denied") if number is PermissionError else number()

    return refuse


def takes(**seconds: float | None) -> Seconds:
    return lambda name, arch, deadline: seconds[name]


def unmeasured(name: str, arch: str, deadline: Deadline) -> float | None:
    raise AssertionError(f"{name} was measured")


def decided(open_kvm: Callable[[], None], seconds: Seconds = unmeasured, arch: str = "x86_64") -> accel.Acceleration:
    return accel.decide(arch, "x86_64", open_kvm, seconds)


def test_without_the_device_guests_are_emulated() -> None:
    choice = decided(fails(FileNotFoundError))
    assert choice.name == "tcg"
    assert "there is no /dev/kvm" in choice.why


def test_a_device_without_permission_gives_the_remedy() -> None:
    choice = decided(fails(PermissionError))
    assert choice.name == "tcg"
    assert choice.why == "/dev/kvm cannot be opened (Permission denied): add yourself to the group kvm"


def test_a_device_that_opens_but_runs_nothing_is_not_used() -> None:
    choice = decided(opens, takes(tcg=0.2, kvm=None))
    assert choice.name == "tcg"
    assert choice.why == "/dev/kvm opens, but ran nothing in 2.0 s (tcg: 0.20 s)"


def test_kvm_that_is_slower_than_emulation_is_not_used() -> None:
    choice = decided(opens, takes(tcg=0.2, kvm=0.5))
    assert (choice.name, choice.why) == ("tcg", "kvm took 0.50 s, tcg only 0.20 s for the same work")


def test_kvm_that_works_is_used() -> None:
    assert decided(opens, takes(tcg=0.2, kvm=0.1)) == accel.Acceleration("kvm", "measured: kvm 0.10 s, tcg 0.20 s")


def test_kvm_gets_more_time_if_emulation_is_slow() -> None:
    limits: list[float] = []

    def seconds(name: str, arch: str, deadline: Deadline) -> float | None:
        limits.append(deadline.seconds)
        return 4.0 if name == "tcg" else 1.0

    assert decided(opens, seconds).name == "kvm"
    assert limits == [30, 12]


def test_a_guest_of_another_architecture_is_emulated() -> None:
    assert decided(opens, arch="aarch64").why == "the guest is aarch64, this host is x86_64"


def test_a_qemu_that_runs_nothing_is_an_error() -> None:
    with pytest.raises(LabError, match="QEMU does not work"):
        decided(opens, takes(tcg=None))


def test_the_firmware_fills_64_kib_and_starts_with_a_jump_at_the_reset_vector() -> None:
    image = accel.firmware()
    assert len(image) == 65536
    assert image[-16] == 0xE9
    target = (0xFFF0 + 3 + int.from_bytes(image[-15:-13], "little")) & 0xFFFF
    assert image[target : target + 2] == b"\xfa\x2e"  # cli; then lgdt through cs


def test_the_firmware_does_its_work_in_a_real_qemu() -> None:
    if platform.machine() == "x86_64":  # setup brings the emulator of the host's own architecture
        took = accel._seconds("tcg", "x86_64", Deadline(30))
        assert took is not None and took < 30


def test_accel_tcg_in_lab_yaml_is_not_measured(xdg: Path) -> None:
    assert accel.choose("tcg") == accel.Acceleration("tcg", "set in lab.yaml")
    assert accel.last_choice("tcg") == accel.choose("tcg")
    assert not paths.acceleration().exists()


def test_a_choice_is_remembered_for_this_boot_of_the_host(xdg: Path) -> None:
    assert accel.last_choice("auto") is None
    choice = accel.choose("auto")
    assert accel.last_choice("auto") == choice
    record = json.loads(paths.acceleration().read_text())
    paths.write_json(paths.acceleration(), {key: {"name": "kvm", "why": "remembered"} for key in record})
    assert accel.choose("auto").why == "remembered"
    assert accel.choose("kvm").name == "kvm"


def test_a_choice_of_another_boot_is_ignored(xdg: Path) -> None:
    paths.write_json(paths.acceleration(), {"0123456789abcdef": {"name": "kvm", "why": "long ago"}})
    assert accel.last_choice("auto") is None
    assert accel.choose("auto").why != "long ago"


def test_accel_kvm_without_kvm_is_an_error(xdg: Path) -> None:
    accel.choose("auto")
    record = json.loads(paths.acceleration().read_text())
    paths.write_json(paths.acceleration(), {key: {"name": "tcg", "why": "there is no /dev/kvm"} for key in record})
    with pytest.raises(LabError, match="accel: kvm, but there is no /dev/kvm") as caught:
        accel.choose("kvm")
    assert caught.value.hint == "set `accel: auto` to use kvm if it works, otherwise tcg"


def test_emulation_has_smm_and_arm64_has_none() -> None:
    assert accel.has_smm("tcg", "x86_64")
    assert not accel.has_smm("tcg", "aarch64")
    assert not accel.has_smm("kvm", "aarch64")


@pytest.mark.parametrize(("answer", "smm"), [(1, True), (0, False), (OSError(25, "not a KVM"), False)])
def test_kvm_is_queried_for_smm(monkeypatch: pytest.MonkeyPatch, answer: int | OSError, smm: bool) -> None:
    def ioctl(device: int, request: int, argument: int) -> int:
        assert (request, argument) == (0xAE03, 117)
        if isinstance(answer, OSError):
            raise answer
        return answer

    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: real("/dev/null" if path == "/dev/kvm" else path, flags))
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert accel.has_smm("kvm", "x86_64") is smm


@pytest.mark.parametrize(
    ("cpuinfo", "virtual"),
    [
        ("model name\t: x\nflags\t\t: fpu vme hypervisor lahf_lm\n", True),
        ("model name\t: hypervisor\nflags\t\t: fpu vme lahf_lm\n", False),
        ("CPU implementer\t: 0x41\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_a_virtual_machine_is_known_by_its_cpu(cpuinfo: str, virtual: bool) -> None:
    assert accel.is_virtual(cpuinfo) is virtual
