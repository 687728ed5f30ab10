"""Test which package of the host a hint names."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmlab.common.errors import LabError
from kmlab.host.hypervisor import doctor
from kmlab.host.process import command, host_packages


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host_packages, "_OS_RELEASE", tmp_path / "os-release")
    return tmp_path / "os-release"


@pytest.mark.parametrize(
    ("text", "manager"),
    [
        ("ID=debian\n", "apt-get"),
        ('NAME="Linux Mint"\nID=linuxmint\nID_LIKE="ubuntu debian"\n', "apt-get"),
        ('ID="rhel"\nID_LIKE="fedora"\n', "dnf"),
        ("ID=arch\n", "pacman"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "zypper"),
        ("VERSION_ID=fedora\nID=debian\n", "apt-get"),
    ],
)
def test_a_distribution_has_its_package_manager(system: Path, text: str, manager: str) -> None:
    system.write_text(text)
    assert host_packages.manager() == manager


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ID=debian\n", "sudo apt-get install openssh-client   (or: make setup)"),
        ("ID=fedora\n", "sudo dnf install openssh-clients   (or: make setup)"),
        ("ID=arch\n", "sudo pacman --sync openssh   (or: make setup)"),
    ],
)
def test_a_missing_program_names_the_package_of_this_distribution(
    system: Path, text: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    system.write_text(text)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(LabError, match="ssh-keygen is not installed") as error:
        command.find("ssh-keygen")
    assert error.value.hint == hint


def test_a_program_that_the_distribution_does_not_have_is_no_reason_to_give_up(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.write_text("ID=arch\n")
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    found = {finding.what: finding for finding in doctor._programs("x86_64")}
    assert (found["mmdebstrap"].state, found["mmdebstrap"].mend) == ("slow", ())
    assert found["bwrap"].state == "broken" and found["bwrap"].mend[-3:] == ("--needed", "--noconfirm", "bubblewrap")
    assert "no package with mmdebstrap: see docs/hosts.md" in host_packages.install_hint("mmdebstrap")


def test_every_row_has_a_package_for_debian() -> None:
    assert [row for row in host_packages.table() if not row.packages["apt-get"]] == []
    assert {row.use for row in host_packages.table()} == {"run", "test", "docs"}
