"""Test tools/setup.sh on the hosts that it supports: stand-ins for their package managers, and their os-release."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from kmlab.host.process import host_packages
from tests.places import REPOSITORY

OS = {
    "debian": ('ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n', "apt-get"),
    "ubuntu": ("ID=ubuntu\nID_LIKE=debian\n", "apt-get"),
    "mint": ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "apt-get"),
    "fedora": ("ID=fedora\n", "dnf"),
    "rocky": ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf"),
    "arch": ("ID=arch\n", "pacman"),
    "manjaro": ("ID=manjaro\nID_LIKE=arch\n", "pacman"),
    "tumbleweed": ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', "zypper"),
    "leap": ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "zypper"),
}
ARCH = os.uname().machine
QUERY = {
    "dpkg-query": 'for word in "$@"; do :; done; ! grep -qxF -e "$word" "$HOST/there" || echo installed',
    "rpm": 'for word in "$@"; do :; done; grep -qxF -e "$word" "$HOST/there"',
    "pacman": ('case $1 in --query) grep -qxF -e "$2" "$HOST/there" ;; *) echo "pacman $*" >> "$HOST/calls" ;; esac'),
}


class Setup(NamedTuple):
    code: int
    out: str
    err: str
    calls: list[str]

    def installed(self) -> list[str]:
        (line,) = [line for line in self.calls if " install " in line or " --sync " in line]
        words = line.partition(" install " if " install " in line else " --sync ")[2].split()
        return [word for word in words if not word.startswith("-") and "=" not in word]


def setup(
    folder: Path, system: str, *options: str, there: tuple[str, ...] = (), fails: bool = False, sudo: bool = True
) -> Setup:
    """Run the script in a copy of the checkout, with nothing in PATH but stand-ins and a shell's basic programs."""
    programs, home = folder / "bin", folder / "checkout"
    for path in (programs, home / "tools", home / "kmlab/host/process"):
        path.mkdir(parents=True, exist_ok=True)
    for name in ("tools/setup.sh", "kmlab/host/process/packages.tsv"):
        shutil.copy(REPOSITORY / name, home / name)
    stand_ins = dict(QUERY)
    for manager in ("apt-get", "dnf", "zypper"):
        failure = "echo 'no such package: example'; exit 1" if fails else ""
        stand_ins[manager] = (
            f'echo "{manager} $*" >> "$HOST/calls"; case " $* " in *" install "*) {failure or ":"} ;; esac'
        )
    stand_ins["id"] = "case $1 in -u) echo 1000 ;; *) echo anna ;; esac"
    if sudo:
        stand_ins["sudo"] = 'exec "$@"'
    for name, script in stand_ins.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    for name in ("sh", "dirname", "uname", "awk", "grep", "env", "tail", "rm", "tr", "cat"):
        (programs / name).unlink(missing_ok=True)
        (programs / name).symlink_to(str(shutil.which(name)))
    (folder / "there").write_text("".join(f"{name}\n" for name in there))
    (folder / "calls").write_text("")
    (folder / "os-release").write_text(OS[system][0] if system in OS else system)
    environment = {"PATH": str(programs), "HOST": str(folder), "KMLAB_OS_RELEASE": str(folder / "os-release")}
    argv = [str(programs / "sh"), str(home / "tools/setup.sh"), "--packages", *options]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, check=False)
    return Setup(done.returncode, done.stdout, done.stderr, (folder / "calls").read_text().splitlines())


def expected(manager: str, *uses: str) -> list[str]:
    rows = [row for row in host_packages.table() if row.use in uses and row.arch in ("any", ARCH)]
    return list(dict.fromkeys(name for row in rows if (name := row.packages[manager])))


@pytest.mark.parametrize("system", OS)
def test_each_system_gets_its_packages_from_its_own_manager(tmp_path: Path, system: str) -> None:
    manager = OS[system][1]
    # The group of ids is another matter: /etc/subuid is that of the host.
    done = setup(tmp_path, system, "--run-only", there=())
    assert manager in {line.split()[0] for line in done.calls}, done.err
    assert len({line.split()[0] for line in done.calls} - {manager}) == 0
    assert done.installed() == expected(manager, "run")


def test_the_tests_and_the_docs_need_more(tmp_path: Path) -> None:
    assert setup(tmp_path, "fedora").installed() == expected("dnf", "run", "test")
    assert setup(tmp_path, "fedora", "--docs").installed() == expected("dnf", "run", "docs")


@pytest.mark.parametrize("system", ["debian", "fedora", "arch", "leap"])
def test_only_what_is_missing_is_installed_and_nothing_if_nothing_is(tmp_path: Path, system: str) -> None:
    everything = expected(OS[system][1], "run")
    done = setup(tmp_path, system, "--run-only", there=tuple(name for name in everything if name != "bubblewrap"))
    assert done.installed() == ["bubblewrap"]
    assert not [
        line for line in setup(tmp_path, system, "--run-only", there=tuple(everything)).calls if "usermod" not in line
    ]


def test_what_the_manager_said_is_shown_if_it_fails(tmp_path: Path) -> None:
    done = setup(tmp_path, "leap", fails=True)
    assert done.code == 1
    assert "no such package: example" in done.err and "zypper could not install" in done.err


@pytest.mark.parametrize("system", ["debian", "fedora", "arch", "leap"])
def test_without_sudo_one_line_says_what_to_run_as_root(tmp_path: Path, system: str) -> None:
    done = setup(tmp_path, system, "--run-only", sudo=False)
    assert done.code == 1 and done.calls == []
    (line,) = done.err.splitlines()
    assert line.startswith("setup: there is no sudo: as root, run: ") and "bubblewrap" in line


def test_an_unknown_system_gets_a_list(tmp_path: Path) -> None:
    done = setup(tmp_path, 'ID=plan9\nPRETTY_NAME="Plan 9"\n')
    assert done.code == 1 and done.calls == []
    assert "this is Plan 9: this script knows Debian, Ubuntu, Fedora, Arch and openSUSE" in done.err
    assert " ".join(expected("apt-get", "run", "test")) in done.err


@pytest.mark.parametrize("system", ["arch", "leap"])
def test_a_system_that_cannot_build_images_is_told_so(tmp_path: Path, system: str) -> None:
    done = setup(tmp_path, system, "--run-only", there=tuple(expected(OS[system][1], "run")))
    assert "no package with mmdebstrap, so kmlab cannot build images here: see docs/hosts.md" in done.out


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    done = setup(tmp_path, "debian", "--all")
    assert (done.code, done.err) == (1, "setup: unknown option --all: --run-only, --docs or --packages\n")
