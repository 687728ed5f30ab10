"""Test what doctor tries, and the remedies: stand-ins for the programs of a host that refuses something."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmlab.common.errors import LabError
from kmlab.host.hypervisor import accel, doctor
from kmlab.host.hypervisor.accel import Acceleration
from kmlab.host.process import sandbox


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder before all others in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def finding(what: str) -> doctor.Finding:
    (found,) = [f for f in doctor.examine(lambda arch: Path("/firmware")) if f.what == what]
    return found


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An ordinary user, called anna; the folder has the files with ranges of ids."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("LOGNAME", "anna")
    monkeypatch.setattr(doctor, "_RANGES", (tmp_path / "subuid", tmp_path / "subgid"))
    return tmp_path


def test_a_user_without_a_range_of_ids_gets_one(user: Path, programs: Path) -> None:
    stand_in(programs, "mmdebstrap", "echo 'E: failed to parse /etc/subuid and /etc/subgid' >&2; exit 1")
    (user / "subuid").write_text("anna:100000:65536\nberta:165536:65536\n")
    (user / "subgid").write_text("berta:100000:65536\n")
    found = doctor._namespaces()
    assert (found.state, found.detail) == (
        "broken",
        "anna cannot build images: E: failed to parse /etc/subuid and /etc/subgid",
    )
    assert found.mend[:2] == ("sudo", "usermod") and found.mend[-1] == "anna"


def test_namespaces_are_tried_and_not_only_looked_up(user: Path, programs: Path) -> None:
    for name in ("subuid", "subgid"):
        (user / name).write_text("anna:100000:65536\n")
    stand_in(programs, "mmdebstrap", 'test "$*" = "--unshare-helper true"')
    assert doctor._namespaces().state == "fine"
    stand_in(
        programs,
        "mmdebstrap",
        "printf 'E: unshare syscall failed: Operation not permitted\\nE: unshared command failed\\n'; exit 1",
    )
    found = doctor._namespaces()
    assert found.state == "broken" and found.detail.endswith("E: unshare syscall failed: Operation not permitted")
    assert found.mend == ()


REFUSED = "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1"


def test_a_bubblewrap_that_apparmor_refuses_gets_its_profile(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ubuntu 24.04. The sysctl would open user namespaces to every program of the host."""
    stand_in(programs, "bwrap", REFUSED)
    (tmp_path / "restricted").write_text("1\n")
    monkeypatch.setattr(sandbox, "_RESTRICTED", tmp_path / "restricted")
    with pytest.raises(LabError, match="cannot make a sandbox here: setting up uid map: Permission denied") as error:
        sandbox.check()
    assert error.value.hint is not None
    assert "load its profile" in error.value.hint and "bwrap-userns-restrict" in error.value.hint
    assert "sysctl" not in error.value.hint
    found = finding("sandbox for builds")
    assert found.state == "slow" and found.mend[:2] == ("sh", "-c")
    assert "apparmor_parser --replace /etc/apparmor.d/bwrap-userns-restrict" in found.mend[2]


def test_a_bubblewrap_that_something_else_refuses_keeps_its_own_hint(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(programs, "bwrap", REFUSED)
    monkeypatch.setattr(sandbox, "_RESTRICTED", tmp_path / "absent")
    found = finding("sandbox for builds")
    assert found.state == "slow" and "build: guest" in found.detail and found.mend == ()


def test_the_sandbox_of_this_host_works() -> None:
    assert finding("sandbox for builds").state == "fine"


DENIED = "/dev/kvm cannot be opened (Permission denied): add yourself to the group kvm"


@pytest.mark.parametrize("hosted", [False, True])
def test_a_job_that_may_not_use_kvm_gets_a_rule_and_a_person_joins_the_group(
    hosted: bool, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job on a hosted runner cannot log in again."""
    monkeypatch.setattr(accel, "choose", lambda name, arch: Acceleration("tcg", DENIED))
    monkeypatch.setenv("GITHUB_ACTIONS", "true" if hosted else "false")
    found = doctor._acceleration("x86_64")
    assert found.state == "slow"
    if hosted:
        assert 'KERNEL=="kvm", GROUP="kvm", MODE="0666"' in found.mend[-1] and "udevadm trigger" in found.mend[-1]
    else:
        assert found.mend == ("sudo", "usermod", "--append", "--groups", "kvm", "anna")
