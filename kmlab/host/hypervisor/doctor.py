"""Check this host for problems that stop or slow a lab, each with the command that fixes it."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import CommandFailed, KmlabError
from kmlab.common.events import Deadline, printable
from kmlab.host.hypervisor import accel, hypervisor
from kmlab.host.process import command, host_packages, sandbox

_SPACE = 8 << 30
_GROUP = "kvm"
_RANGES = (Path("/etc/subuid"), Path("/etc/subgid"))
_KVM_RULE = (
    """echo 'KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"' > /etc/udev/rules.d/99-kvm.rules """
    "&& udevadm control --reload-rules && udevadm trigger --name-match=kvm"
)
"""Let all users of a machine that runs one job use KVM."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    what: str
    state: str
    """fine, slow (it works, but slowly) or broken."""
    detail: str
    mend: tuple[str, ...] = ()
    """The command that fixes it."""


def examine(firmware: Callable[[str], Path]) -> list[Finding]:
    """Check everything, in the order of use. `firmware` chooses an architecture's firmware or raises KmlabError."""
    arch = os.uname().machine
    return [
        *_programs(arch),
        _firmware(arch, firmware),
        _binding(),
        _enroller(),
        _driver(),
        _namespaces(),
        _sandbox(),
        *_folders(),
        _acceleration(arch),
    ]


def mend(findings: Sequence[Finding]) -> None:
    """Run the commands of all findings that are not fine, each once, in the user's terminal."""
    for argv in dict.fromkeys(f.mend for f in findings if f.state != "fine" and f.mend):
        command.interactive(argv)


def _programs(arch: str) -> list[Finding]:
    findings = []
    for program in host_packages.programs():
        if program.startswith("qemu-system") and program != command.emulator(arch):
            continue
        try:
            findings.append(Finding(program, "fine", command.find(program)))
        except KmlabError:
            findings.append(_missing(program))
    return findings


def _missing(program: str) -> Finding:
    argv = _install(program)
    if not argv:
        detail = "this distribution has no package with it: kmlab can only use images that a publisher made"
        return Finding(program, "slow", detail)
    return Finding(program, "broken", "is not installed", argv)


def _firmware(arch: str, choose: Callable[[str], Path]) -> Finding:
    try:
        return Finding("UEFI firmware", "fine", str(choose(arch)))
    except KmlabError as error:
        package = "ovmf" if arch == "x86_64" else "qemu-efi-aarch64"
        return Finding("UEFI firmware", "broken", error.message, _install(package))


def _binding() -> Finding:
    if util.find_spec("libvirt") is None:
        return Finding("libvirt binding", "broken", "libvirt-python is not in this Python", ("make", "setup"))
    return Finding("libvirt binding", "fine", "libvirt-python")


def _enroller() -> Finding:
    """Check virt-firmware, which enrols keys (varstore.py). It is looked up, because it must not be imported."""
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
            argv = _install("libvirt-daemon-driver-qemu")
        elif "libvirt-qemu" in error.message:
            argv = (*_sudo(), "useradd", "--system", "--no-create-home", "--user-group", "libvirt-qemu")
        return Finding("libvirt's QEMU driver", "broken", error.message, argv)
    finally:
        paths.remove_tree(root)


def _namespaces() -> Finding:
    """Try what mmdebstrap does: user namespaces with a range of user ids. It says so itself if something is missing."""
    if os.geteuid() == 0:
        return Finding("user namespaces", "fine", "not needed as root")
    name = getpass.getuser()
    try:
        command.run(["mmdebstrap", "--unshare-helper", "true"], deadline=Deadline(30))
    except KmlabError as error:
        lines = error.tail.strip().splitlines() if isinstance(error, CommandFailed) else [error.message]
        said = [line for line in lines if line.startswith("E: ")] or lines
        argv: tuple[str, ...] = ()
        if not _has_range(name):
            ranges = ("--add-subuids", "100000-165535", "--add-subgids", "100000-165535")
            argv = (*_sudo(), "usermod", *ranges, name)
        detail = f"{name} cannot build images: {printable(said[0] if said else 'mmdebstrap failed', 200)}"
        return Finding("user namespaces", "broken", detail, argv)
    return Finding("user namespaces", "fine", "mmdebstrap can use them")


def _has_range(name: str) -> bool:
    """Return whether a user has ranges in /etc/subuid and /etc/subgid (subuid(5))."""
    texts = [path.read_text("utf-8", "replace") if path.exists() else "" for path in _RANGES]
    return all(any(line.startswith(f"{name}:") for line in text.splitlines()) for text in texts)


def _sandbox() -> Finding:
    """Try a sandbox. Without one, guests build modules themselves, which only is slower."""
    try:
        sandbox.check()
    except KmlabError as error:
        line = sandbox.apparmor_remedy()
        argv = ("sh", "-c", line) if line else ()
        return Finding("sandbox for builds", "slow", f"{error.message} ({error.hint})", argv)
    return Finding("sandbox for builds", "fine", "bubblewrap works")


def _folders() -> list[Finding]:
    findings = []
    for what, folder in (("state", paths.state_home()), ("cache", paths.cache_home())):
        try:
            paths.make_folder(folder)
        except KmlabError as error:
            findings.append(Finding(what, "broken", error.message))
            continue
        free = shutil.disk_usage(folder).free
        state = "fine" if what == "state" or free >= _SPACE else "broken"
        findings.append(Finding(what, state, f"{folder}: {free / 2**30:.1f} GiB free"))
    return findings


def _acceleration(arch: str) -> Finding:
    try:
        choice = accel.choose("auto", arch)
    except KmlabError as error:
        return Finding("acceleration", "broken", error.message)
    if choice.name == "kvm":
        return Finding("acceleration", "fine", choice.why)
    argv: tuple[str, ...] = ()
    if "group kvm" in choice.why:
        argv = (*_sudo(), "usermod", "--append", "--groups", _GROUP, getpass.getuser())
        if os.environ.get("GITHUB_ACTIONS") == "true":
            # A new group takes a new login, which a job does not have. A rule also survives what packages do to udev.
            argv = (*_sudo(), "sh", "-c", _KVM_RULE)
    return Finding("acceleration", "slow", f"guests are emulated: {choice.why}", argv)


def _install(what: str) -> tuple[str, ...]:
    """Return the command that installs a program, or a package by Debian's name; nothing if there is no package."""
    package = host_packages.package_of(what)
    return (*_sudo(), *host_packages.install_command(package)) if package else ()


def _sudo() -> tuple[str, ...]:
    return () if os.geteuid() == 0 else ("sudo",)
