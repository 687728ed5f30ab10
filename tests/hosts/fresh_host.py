"""A new machine with another release of Debian: a root file system, and commands in it as root or as a user."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kmlab.common import paths
from tests.places import REPOSITORY

_ENTER = Path(__file__).with_name("enter.sh")
_PACKAGES = "git,make,sudo,ca-certificates,passwd,login,locales"
"""What the README expects of a machine, and what these tests need."""
_SETTINGS = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE")
USER = "anna"


class Said(NamedTuple):
    code: int
    output: str
    seconds: float


@dataclass(frozen=True)
class FreshHost:
    """A root file system with a copy of the checkout in a folder whose name has a space and an umlaut."""

    root: Path
    home: str = f"/home/{USER}"
    checkout: str = f"/home/{USER}/Meine Geräte/kmlab"

    def run(self, line: str, *, user: str = USER, patience: float = 3600, **environment: str) -> Said:
        """Run a line of shell in the checkout."""
        inside = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", "USER": user}
        inside |= {"HOME": "/root" if user == "root" else self.home, "LOGNAME": user, **_kept(), **environment}
        variables = [f"{name}={value}" for name, value in inside.items()]
        script = f'cd "{self.checkout}" && {{ {line}\n}}'
        argv = [
            "sh",
            str(_ENTER),
            str(self.root),
            "runuser",
            "-u",
            user,
            "--",
            "env",
            "-i",
            *variables,
            "sh",
            "-c",
            script,
        ]
        began = time.monotonic()
        done = subprocess.run(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=patience,
            check=False,
        )
        return Said(done.returncode, done.stdout, time.monotonic() - began)


def _kept() -> Mapping[str, str]:
    return {name: value for name in _SETTINGS if (value := os.environ.get(name))}


def make(suite: str, folder: Path) -> FreshHost:
    """Unpack a new machine into `folder`. Its packages are fetched once."""
    archive = paths.make_folder(paths.cache_home() / "tests") / f"host-{suite}.tar"
    if not archive.exists():
        half = archive.with_suffix(".half")
        argv = ["mmdebstrap", "--variant=minbase", f"--include={_PACKAGES}", "--format=tar", suite, str(half)]
        subprocess.run(argv, check=True, timeout=1800)
        half.rename(archive)
    root = folder / suite
    root.mkdir()
    subprocess.run(["tar", "--extract", f"--file={archive}", f"--directory={root}", "--exclude=./dev/*"], check=True)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    shutil.copy("/etc/hosts", root / "etc/hosts")
    certificates = root / "etc/ssl/certs/ca-certificates.crt"
    if (given := Path(os.environ.get("SSL_CERT_FILE", ""))).is_file() and certificates.exists():
        shutil.copy(given, certificates)
    host = FreshHost(root)
    # Without the ranges of ids that useradd gives: setup.sh must do that.
    made = host_command(
        host, f"useradd --create-home --shell /bin/sh {USER} && sed -i /^{USER}:/d /etc/subuid /etc/subgid"
    )
    assert made == 0
    (root / f"etc/sudoers.d/{USER}").write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
    (root / "etc/locale.gen").write_text("de_DE.UTF-8 UTF-8\n")
    assert host_command(host, "locale-gen") == 0
    _copy_checkout(root / host.checkout.lstrip("/"))
    assert host_command(host, f"chown -R {USER}: {host.home}") == 0
    return host


def host_command(host: FreshHost, line: str) -> int:
    return subprocess.run(["sh", str(_ENTER), str(host.root), "sh", "-c", line], check=False).returncode


def _copy_checkout(target: Path) -> None:
    """Copy what git knows of the checkout, as `git clone` would, and what is changed and not committed yet."""
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        source, copy = REPOSITORY / name, target / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
