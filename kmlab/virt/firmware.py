"""Choose a guest's UEFI firmware: its code, the template of its variables, and whether it needs SMM.

The meaning follows QEMU's docs/interop/firmware.json. The file names follow the README files of the packages (ovmf and
qemu-efi-aarch64 of Debian and Ubuntu, edk2-ovmf and edk2-aarch64 of Fedora). They are candidates: the caller checks
which files exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kmlab.common.errors import LabError

FIRST_LINE_SECONDS = 15.0
"""How long to wait for the firmware's first line on the serial port. It takes 3.3 s under TCG."""

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_MACHINES = {"x86_64": "q35", "aarch64": "virt"}
_PACKAGES = {"x86_64": "ovmf (Fedora: edk2-ovmf)", "aarch64": "qemu-efi-aarch64 (Fedora: edk2-aarch64)"}


@dataclass(frozen=True, slots=True)
class Firmware:
    """A UEFI build, and what a domain needs for it."""

    code: Path
    """Read-only."""
    variables: Path
    """The template of its variable store. Each guest has a copy, because shim writes to it on first boot."""
    machine: str
    smm: bool
    """Whether the domain needs System Management Mode. If not, it should be off."""
    secure: bool
    """Whether it is for Secure Boot: the template has Microsoft's keys and Secure Boot enabled."""
    format: str
    """The format of both files: raw or qcow2."""
    why: str
    """One sentence for `status`."""


class _Build(NamedTuple):
    arch: str
    secure: bool
    smm: bool
    code: str
    variables: str


_DEBIAN, _DEBIAN_ARM = "/usr/share/OVMF/", "/usr/share/AAVMF/"
_FEDORA, _FEDORA_ARM = "/usr/share/edk2/ovmf/", "/usr/share/edk2/aarch64/"

_BUILDS = (
    # First the builds that need SMM, then those that have Secure Boot without it.
    _Build("x86_64", True, True, f"{_DEBIAN}OVMF_CODE_4M.secboot.fd", f"{_DEBIAN}OVMF_VARS_4M.ms.fd"),
    _Build("x86_64", True, True, f"{_DEBIAN}OVMF_CODE_4M.ms.fd", f"{_DEBIAN}OVMF_VARS_4M.ms.fd"),
    _Build("x86_64", True, True, f"{_FEDORA}OVMF_CODE_4M.secboot.qcow2", f"{_FEDORA}OVMF_VARS_4M.secboot.qcow2"),
    _Build("x86_64", True, True, f"{_FEDORA}OVMF_CODE.secboot.fd", f"{_FEDORA}OVMF_VARS.secboot.fd"),
    _Build("x86_64", True, False, f"{_DEBIAN}OVMF_CODE_4M.fd", f"{_DEBIAN}OVMF_VARS_4M.ms.fd"),
    _Build("x86_64", False, False, f"{_DEBIAN}OVMF_CODE_4M.fd", f"{_DEBIAN}OVMF_VARS_4M.fd"),
    _Build("x86_64", False, False, f"{_FEDORA}OVMF_CODE_4M.qcow2", f"{_FEDORA}OVMF_VARS_4M.qcow2"),
    _Build("x86_64", False, False, f"{_FEDORA}OVMF_CODE.fd", f"{_FEDORA}OVMF_VARS.fd"),
    # arm64 has no SMM. Debian split the build in edk2 2025.02: AAVMF_CODE.fd is a link there, to be removed.
    _Build("aarch64", True, False, f"{_DEBIAN_ARM}AAVMF_CODE.secboot.fd", f"{_DEBIAN_ARM}AAVMF_VARS.ms.fd"),
    _Build("aarch64", True, False, f"{_DEBIAN_ARM}AAVMF_CODE.ms.fd", f"{_DEBIAN_ARM}AAVMF_VARS.ms.fd"),
    _Build("aarch64", False, False, f"{_DEBIAN_ARM}AAVMF_CODE.no-secboot.fd", f"{_DEBIAN_ARM}AAVMF_VARS.fd"),
    _Build("aarch64", False, False, f"{_DEBIAN_ARM}AAVMF_CODE.fd", f"{_DEBIAN_ARM}AAVMF_VARS.fd"),
    _Build("aarch64", False, False, f"{_FEDORA_ARM}QEMU_EFI-pflash.raw", f"{_FEDORA_ARM}vars-template-pflash.raw"),
)


def choose(arch: str, *, secure_boot: bool, smm_available: bool, exists: Callable[[str], bool]) -> Firmware:
    """Choose the best installed firmware: Secure Boot with SMM if the host and the accelerator have it, else without.

    `arch` is as in `uname -m` or in Debian. Raise LabError, with the package to install, if there is none.
    """
    arch = _ARCHITECTURES.get(arch, arch)
    if arch not in _MACHINES:
        raise LabError(f"kmlab has no UEFI firmware for {arch}", f"use {' or '.join(_MACHINES)}")
    builds = [build for build in _BUILDS if build.arch == arch and build.secure == secure_boot]
    present = [build for build in builds if exists(build.code) and exists(build.variables)]
    for build in present:
        if smm_available or not build.smm:
            return _firmware(build, smm_available)
    if present:
        raise LabError(
            f"the only Secure Boot firmware here, {present[0].code}, needs SMM, which this host does not have",
            f"install a build that works without SMM, such as {_DEBIAN}OVMF_CODE_4M.fd of Debian's ovmf",
        )
    purpose = " with Secure Boot" if secure_boot else ""
    paths = ", ".join(build.code for build in builds)
    raise LabError(
        f"no UEFI firmware{purpose} for {arch} is installed; looked for {paths}",
        f"install {_PACKAGES[arch]}",
    )


def why_silent(firmware: Firmware) -> tuple[str, str]:
    """Return the error message and the hint for a guest whose firmware never wrote a line."""
    if firmware.smm:
        return (
            f"the firmware {firmware.code} printed nothing: it does not run if SMM is missing or broken",
            "let kmlab use the firmware without SMM; it also enforces Secure Boot",
        )
    return (
        f"the firmware {firmware.code} printed nothing: {firmware.variables} may belong to another build,"
        " or the firmware is not built for this machine",
        f"install the firmware's package again: {_PACKAGES[_arch_of(firmware)]}",
    )


_REFUSALS = (
    (r"BdsDxe: failed to load .*: (Access Denied|Security Violation)", "the firmware does not trust its boot loader"),
    (r"Verification failed: \(0x1A\) Security Violation", "shim does not trust its GRUB"),
    (r"bad shim signature", "GRUB does not trust its kernel"),
)
"""The messages of edk2, shim and GRUB about a missing or untrusted signature."""


def why_refused(console: str) -> str | None:
    """Return which part of the boot chain Secure Boot rejected, as a guest's console reports it; None if no part."""
    return next((what for pattern, what in _REFUSALS if re.search(pattern, console)), None)


def _firmware(build: _Build, smm_available: bool) -> Firmware:
    return Firmware(
        code=Path(build.code),
        variables=Path(build.variables),
        machine=_MACHINES[build.arch],
        smm=build.smm,
        secure=build.secure,
        format="qcow2" if build.code.endswith(".qcow2") else "raw",
        why=_why(build, smm_available),
    )


def _why(build: _Build, smm_available: bool) -> str:
    if not build.secure:
        return "UEFI without Secure Boot"
    if build.smm:
        return "Secure Boot; SMM keeps the guest's kernel from changing the variable store"
    if build.arch == "aarch64":
        return "Secure Boot; arm64 has no SMM, so the guest's kernel could change the variable store"
    reason = "the build that uses it is not installed" if smm_available else "this host does not offer it"
    return (
        f"Secure Boot without SMM, because {reason}: it is still enforced, but the guest's kernel could"
        " change the variable store"
    )


def _arch_of(firmware: Firmware) -> str:
    return next(arch for arch, machine in _MACHINES.items() if machine == firmware.machine)
