"""Choose a guest's UEFI firmware: its code, the template of its variables, and whether it needs SMM.

Every distribution describes its firmware in JSON files (QEMU's docs/interop/firmware.json), which the caller reads.
Rows here add what these files do not say: a build of Debian that enforces Secure Boot without SMM, and packages without
descriptions.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kmlab.common.errors import LabError

FIRST_LINE_SECONDS = 15.0
"""How long to wait for the firmware's first line on the serial port. It takes 3.3 s under TCG."""

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_MACHINES = {"x86_64": "q35", "aarch64": "virt"}
_MACHINE_EXAMPLES = {"x86_64": "pc-q35-9.2", "aarch64": "virt-9.2"}
"""Names that descriptors' patterns for these machines match."""
_PACKAGES = {
    "x86_64": "ovmf (Fedora, Arch: edk2-ovmf; openSUSE: qemu-ovmf-x86_64)",
    "aarch64": "qemu-efi-aarch64 (Fedora, Arch: edk2-aarch64; openSUSE: qemu-uefi-aarch64)",
}


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
    """Whether it is for Secure Boot."""
    format: str
    """The format of the code: raw or qcow2."""
    why: str
    """One sentence for `status`."""
    enrolled: bool = True
    """Whether the template has Microsoft's keys, and Secure Boot is on. If not, kmlab enrols them in each store."""
    variables_format: str = "raw"
    """The format of the template, and of each guest's store."""


class Build(NamedTuple):
    """A firmware build that may be installed."""

    arch: str
    secure: bool
    """Whether it enforces Secure Boot with this template, once keys are enrolled."""
    smm: bool
    code: str
    variables: str
    enrolled: bool = True
    """Whether the template has Microsoft's keys."""
    format: str = "raw"
    variables_format: str = "raw"
    beside: str = ""
    """A file that only versions have for which this row is true."""


_OVMF, _AAVMF, _EDK2 = "/usr/share/OVMF/", "/usr/share/AAVMF/", "/usr/share/edk2/aarch64/"

_BUILDS = (
    # Debian's OVMF_CODE_4M.fd enforced Secure Boot until edk2 2023.11-7; the 2 MB images left just before, in 2023.08.
    Build(
        "x86_64", True, False, f"{_OVMF}OVMF_CODE_4M.fd", f"{_OVMF}OVMF_VARS_4M.ms.fd", beside=f"{_OVMF}OVMF_CODE.fd"
    ),
    Build("x86_64", True, True, f"{_OVMF}OVMF_CODE_4M.secboot.fd", f"{_OVMF}OVMF_VARS_4M.ms.fd"),
    Build("x86_64", False, False, f"{_OVMF}OVMF_CODE_4M.fd", f"{_OVMF}OVMF_VARS_4M.fd"),
    Build("aarch64", True, False, f"{_AAVMF}AAVMF_CODE.secboot.fd", f"{_AAVMF}AAVMF_VARS.ms.fd"),
    Build("aarch64", True, False, f"{_AAVMF}AAVMF_CODE.ms.fd", f"{_AAVMF}AAVMF_VARS.ms.fd"),
    Build("aarch64", False, False, f"{_AAVMF}AAVMF_CODE.no-secboot.fd", f"{_AAVMF}AAVMF_VARS.fd"),
    Build("aarch64", False, False, f"{_AAVMF}AAVMF_CODE.fd", f"{_AAVMF}AAVMF_VARS.fd"),
    Build("aarch64", False, False, f"{_EDK2}QEMU_EFI-pflash.raw", f"{_EDK2}vars-template-pflash.raw"),
)


def parse_descriptor(text: str) -> list[Build]:
    """Return the builds that a descriptor describes and kmlab can use; none if the descriptor is not understood."""
    try:
        about = json.loads(text)
        return list(_builds_of(about))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _builds_of(about: dict[str, Any]) -> Iterator[Build]:
    mapping, features = about["mapping"], set(about["features"])
    split = mapping["device"] == "flash" and mapping.get("mode", "split") == "split"
    if "uefi" not in about["interface-types"] or not split:
        return
    code, variables = mapping["executable"], mapping["nvram-template"]
    formats = (str(code["format"]), str(variables["format"]))
    if not set(formats) <= {"raw", "qcow2"}:
        return
    for target in about["targets"]:
        arch = str(target["architecture"])
        example = _MACHINE_EXAMPLES.get(arch, "")
        if example and any(fnmatch.fnmatchcase(example, str(pattern)) for pattern in target["machines"]):
            secure, enrolled = "secure-boot" in features, "enrolled-keys" in features
            places = (str(code["filename"]), str(variables["filename"]))
            yield Build(arch, secure, "requires-smm" in features, *places, enrolled, *formats)


def choose(
    arch: str,
    *,
    secure_boot: bool,
    smm_available: bool,
    size: Callable[[str], int | None],
    descriptors: Iterable[str] = (),
) -> Firmware:
    """Choose the best installed firmware: Secure Boot with SMM if the host and the accelerator have it, else without.

    `arch` is as in `uname -m` or in Debian. `size` returns the bytes of a flash image, None if it does not exist.
    `descriptors` are the contents of the host's descriptors, the preferred one first. Raise LabError, with the package
    to install, if there is no firmware.
    """
    arch = _ARCHITECTURES.get(arch, arch)
    if arch not in _MACHINES:
        raise LabError(f"kmlab has no UEFI firmware for {arch}", f"use {' or '.join(_MACHINES)}")
    known = [*(build for text in descriptors for build in parse_descriptor(text)), *_BUILDS]
    builds = [build for build in known if build.arch == arch and _suits(build, secure_boot)]
    present = [build for build in builds if _is_complete(build, size)]
    usable = [build for build in present if smm_available or not build.smm]
    if usable:
        best = min(usable, key=lambda build: _rank(build, secure_boot))
        return _firmware(best, secure_boot, smm_available)
    if present:
        raise LabError(
            f"the only Secure Boot firmware here, {present[0].code}, needs SMM, which this host does not have",
            "set `accel: tcg`, which has SMM, or use a host kernel with CONFIG_KVM_SMM",
        )
    purpose = " with Secure Boot" if secure_boot else ""
    paths = ", ".join(dict.fromkeys(build.code for build in builds))
    raise LabError(
        f"no UEFI firmware{purpose} for {arch} is installed; looked for {paths}",
        f"install {_PACKAGES[arch]}",
    )


def _suits(build: Build, secure_boot: bool) -> bool:
    """Return whether a build can be used with, or without, Secure Boot. Without keys, no build enforces it."""
    return build.secure if secure_boot else not build.smm and not (build.secure and build.enrolled)


def _rank(build: Build, secure_boot: bool) -> tuple[bool, ...]:
    """Prefer a template with keys and a build with SMM for Secure Boot; and without it, a build that has neither."""
    return (not build.enrolled, not build.smm) if secure_boot else (build.secure, build.enrolled)


def _is_complete(build: Build, size: Callable[[str], int | None]) -> bool:
    """Return whether both files exist and belong together: a store of another size makes the firmware fail silently."""
    code, variables = size(build.code), size(build.variables)
    if code is None or variables is None or (build.beside and size(build.beside) is None):
        return False
    if build.arch == "aarch64":
        return code == variables  # two flash chips of 64 MiB each
    return (code + variables).bit_count() == 1  # one chip of 2 or 4 MiB, which the build divides in two


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


def _firmware(build: Build, secure_boot: bool, smm_available: bool) -> Firmware:
    return Firmware(
        code=Path(build.code),
        variables=Path(build.variables),
        machine=_MACHINES[build.arch],
        smm=build.smm and secure_boot,
        secure=secure_boot,
        format=build.format,
        why=_why(build, secure_boot, smm_available),
        enrolled=build.enrolled,
        variables_format=build.variables_format,
    )


def _why(build: Build, secure_boot: bool, smm_available: bool) -> str:
    if not secure_boot:
        return "UEFI without Secure Boot"
    keys = "" if build.enrolled else ", with Microsoft's keys that kmlab enrolled"
    if build.smm:
        return f"Secure Boot{keys}; SMM keeps the guest's kernel from changing the variable store"
    if build.arch == "aarch64":
        return f"Secure Boot{keys}; arm64 has no SMM, so the guest's kernel could change the variable store"
    reason = "the build that uses it is not installed" if smm_available else "this host does not offer it"
    return (
        f"Secure Boot{keys} without SMM, because {reason}: it is still enforced, but the guest's kernel could"
        " change the variable store"
    )


def _arch_of(firmware: Firmware) -> str:
    return next(arch for arch, machine in _MACHINES.items() if machine == firmware.machine)
