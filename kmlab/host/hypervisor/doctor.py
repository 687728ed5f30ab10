"""What on this host keeps a lab from working or makes it slow, each with the command that mends it."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import KmlabError
from kmlab.common.events import Deadline
from kmlab.host.hypervisor import accel, hypervisor
from kmlab.host.process import command

_SPACE = 8 << 30
_GROUP = "kvm"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: str
    """fine, slow (it works, but) or broken."""
    detail: str
    mend: tuple[str, ...] = ()
    """The command that mends it."""


def examine(firmware: Callable[[str], Path]) -> list[Finding]:
    """Everything, in the order in which it is needed; `firmware` chooses one for an architecture or says what to do."""
    arch = os.uname().machine
    return [
        *_programs(arch),
        _firmware(arch, firmware),
        _binding(),
        _enroller(),
        _driver(),
        _namespaces(),
        *_folders(),
        _acceleration(arch),
    ]


def mend(findings: Sequence[Finding]) -> None:
    """Run the commands of all findings that are not fine, each once, on the person's own terminal."""
    for argv in dict.fromkeys(f.mend for f in findings if f.state != "fine" and f.mend):
        command.interactive(argv)


def _programs(arch: str) -> list[Finding]:
    found = []
    for program, package in command.PACKAGES.items():
        if program.startswith("qemu-system") and program != command.emulator(arch):
            continue
        try:
            found.append(Finding(program, "fine", command.find(program)))
        except KmlabError:
            found.append(Finding(program, "broken", "is not installed", _apt(package)))
    return found


def _firmware(arch: str, choose: Callable[[str], Path]) -> Finding:
    try:
        return Finding("UEFI firmware", "fine", str(choose(arch)))
    except KmlabError as error:
        return Finding(
            "UEFI firmware", "broken", error.message, _apt("ovmf" if arch == "x86_64" else "qemu-efi-aarch64")
        )


def _binding() -> Finding:
    if util.find_spec("libvirt") is None:
        return Finding("libvirt binding", "broken", "libvirt-python is not in this Python", ("make", "setup"))
    return Finding("libvirt binding", "fine", "libvirt-python")


def _enroller() -> Finding:
    """What writes a key into a guest's store of variables (varstore.py); looked up, as it must not be imported."""
    try:
        return Finding("virt-firmware", "fine", metadata.version("virt-firmware"))
    except metadata.PackageNotFoundError:
        detail = "not in this Python: guests with Secure Boot cannot be made"
        return Finding("virt-firmware", "broken", detail, ("make", "setup"))


def _driver() -> Finding:
    root = paths.cache_home() / "work" / f"doctor.{os.getpid()}"
    try:
        with hypervisor.opened(hypervisor.EMBEDDED, root, Deadline(30)):
            return Finding("libvirt's QEMU driver", "fine", "opens embedded, without a daemon")
    except KmlabError as error:
        argv: tuple[str, ...] = ()
        if "no connection driver" in error.message:
            argv = _apt("libvirt-daemon-driver-qemu")
        elif "libvirt-qemu" in error.message:
            argv = (*_sudo(), "useradd", "--system", "--no-create-home", "--user-group", "libvirt-qemu")
        return Finding("libvirt's QEMU driver", "broken", error.message, argv)
    finally:
        paths.remove_tree(root)


def _namespaces() -> Finding:
    if os.geteuid() == 0:
        return Finding("user namespaces", "fine", "not needed as root")
    name = getpass.getuser()
    listed = Path("/etc/subuid")
    if not (listed.exists() and any(line.startswith(f"{name}:") for line in listed.read_text().splitlines())):
        ranges = ("--add-subuids", "100000-165535", "--add-subgids", "100000-165535")
        return Finding(
            "user namespaces", "broken", f"{name} has no range in /etc/subuid", (*_sudo(), "usermod", *ranges, name)
        )
    return Finding("user namespaces", "fine", "a range in /etc/subuid")


def _folders() -> list[Finding]:
    found = []
    for what, folder in (("state", paths.state_home()), ("cache", paths.cache_home())):
        try:
            paths.make_folder(folder)
        except KmlabError as error:
            found.append(Finding(what, "broken", error.message))
            continue
        free = shutil.disk_usage(folder).free
        state = "fine" if what == "state" or free >= _SPACE else "broken"
        found.append(Finding(what, state, f"{folder}: {free / 2**30:.1f} GiB free"))
    return found


def _acceleration(arch: str) -> Finding:
    try:
        found = accel.choose("auto", arch)
    except KmlabError as error:
        return Finding("acceleration", "broken", error.message)
    if found.name == "kvm":
        return Finding("acceleration", "fine", found.why)
    argv: tuple[str, ...] = ()
    if "group kvm" in found.why:
        argv = (*_sudo(), "usermod", "--append", "--groups", _GROUP, getpass.getuser())
    return Finding("acceleration", "slow", f"guests are emulated: {found.why}", argv)


def _apt(package: str) -> tuple[str, ...]:
    return (*_sudo(), "apt-get", "install", "--yes", "--no-install-recommends", package)


def _sudo() -> tuple[str, ...]:
    return () if os.geteuid() == 0 else ("sudo",)
