"""Test the choice of a guest's firmware by installed files and the host's abilities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kmlab.common.errors import LabError
from kmlab.virt.firmware import choose, why_refused, why_silent

DEBIAN_12 = {
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
    "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
    "/usr/share/OVMF/OVMF_VARS_4M.fd",
    "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
    "/usr/share/AAVMF/AAVMF_CODE.fd",
    "/usr/share/AAVMF/AAVMF_CODE.ms.fd",
    "/usr/share/AAVMF/AAVMF_VARS.fd",
    "/usr/share/AAVMF/AAVMF_VARS.ms.fd",
}
DEBIAN_13_ARM = {
    "/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd",
    "/usr/share/AAVMF/AAVMF_CODE.secboot.fd",
    "/usr/share/AAVMF/AAVMF_VARS.fd",
    "/usr/share/AAVMF/AAVMF_VARS.ms.fd",
}
FEDORA = {
    "/usr/share/edk2/ovmf/OVMF_CODE_4M.qcow2",
    "/usr/share/edk2/ovmf/OVMF_CODE_4M.secboot.qcow2",
    "/usr/share/edk2/ovmf/OVMF_VARS_4M.qcow2",
    "/usr/share/edk2/ovmf/OVMF_VARS_4M.secboot.qcow2",
    "/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw",
    "/usr/share/edk2/aarch64/vars-template-pflash.raw",
}


def among(*hosts: set[str]) -> Callable[[str], bool]:
    return set().union(*hosts).__contains__


def test_secure_boot_uses_smm_where_there_is_smm() -> None:
    firmware = choose("x86_64", secure_boot=True, smm_available=True, exists=among(DEBIAN_12))
    assert firmware.code == Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
    assert firmware.variables == Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
    assert (firmware.machine, firmware.smm, firmware.secure, firmware.format) == ("q35", True, True, "raw")


def test_secure_boot_without_smm_uses_the_firmware_without_smm_and_says_what_is_lost() -> None:
    firmware = choose("x86_64", secure_boot=True, smm_available=False, exists=among(DEBIAN_12))
    assert firmware.code == Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
    assert firmware.variables == Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
    assert (firmware.smm, firmware.secure) == (False, True)
    assert "this host does not offer it" in firmware.why
    assert "variable store" in firmware.why


def test_smm_is_not_used_where_its_firmware_is_missing() -> None:
    installed = DEBIAN_12 - {
        "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
        "/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
    }
    firmware = choose("x86_64", secure_boot=True, smm_available=True, exists=among(installed))
    assert firmware.smm is False
    assert "not installed" in firmware.why


@pytest.mark.parametrize("smm", [False, True])
def test_without_secure_boot_the_store_is_empty_and_smm_is_off(smm: bool) -> None:
    firmware = choose("amd64", secure_boot=False, smm_available=smm, exists=among(DEBIAN_12))
    assert firmware.code == Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
    assert firmware.variables == Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
    assert (firmware.smm, firmware.secure) == (False, False)


@pytest.mark.parametrize(
    ("installed", "secure", "code"),
    [
        (DEBIAN_12, True, "AAVMF_CODE.ms.fd"),
        (DEBIAN_12, False, "AAVMF_CODE.fd"),
        (DEBIAN_13_ARM, True, "AAVMF_CODE.secboot.fd"),
        (DEBIAN_13_ARM, False, "AAVMF_CODE.no-secboot.fd"),
        (FEDORA, False, "QEMU_EFI-pflash.raw"),
    ],
)
@pytest.mark.parametrize("arch", ["aarch64", "arm64"])
def test_arm64_has_its_own_firmware_and_never_smm(arch: str, installed: set[str], secure: bool, code: str) -> None:
    firmware = choose(arch, secure_boot=secure, smm_available=True, exists=among(installed))
    assert firmware.code.name == code
    assert (firmware.machine, firmware.smm, firmware.secure) == ("virt", False, secure)


def test_fedoras_files_are_marked_as_qcow2() -> None:
    firmware = choose("x86_64", secure_boot=True, smm_available=True, exists=among(FEDORA))
    assert firmware.code.name == "OVMF_CODE_4M.secboot.qcow2"
    assert firmware.format == "qcow2"


def test_code_without_its_variables_is_not_chosen() -> None:
    only_code = {path for path in DEBIAN_12 if "VARS" not in path}
    with pytest.raises(LabError, match="no UEFI firmware with Secure Boot for x86_64") as error:
        choose("x86_64", secure_boot=True, smm_available=True, exists=among(only_code))
    assert "install ovmf" in (error.value.hint or "")
    assert "OVMF_CODE_4M.secboot.fd" in error.value.message


def test_firmware_that_needs_smm_is_not_started_without_it() -> None:
    with pytest.raises(LabError, match="needs SMM, which this host does not have"):
        choose("x86_64", secure_boot=True, smm_available=False, exists=among(FEDORA))


def test_an_unknown_architecture_is_reported() -> None:
    with pytest.raises(LabError, match="no UEFI firmware for riscv64"):
        choose("riscv64", secure_boot=False, smm_available=False, exists=among(DEBIAN_12))


def test_silence_is_explained_by_smm_if_the_firmware_needs_it() -> None:
    message, hint = why_silent(choose("x86_64", secure_boot=True, smm_available=True, exists=among(DEBIAN_12)))
    assert "OVMF_CODE_4M.secboot.fd printed nothing: it does not run if SMM is missing" in message
    assert "without SMM" in hint
    _, hint = why_silent(choose("aarch64", secure_boot=True, smm_available=True, exists=among(DEBIAN_12)))
    assert "qemu-efi-aarch64" in hint


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (
            'BdsDxe: failed to load Boot0002 "UEFI Non-Block Boot Device" from PciRoot(0x0): Access Denied\r\n',
            "the firmware does not trust its boot loader",
        ),
        ("Verification failed: (0x1A) Security Violation\r\n", "shim does not trust its GRUB"),
        (
            "error: bad shim signature.\r\nerror: you need to load the kernel first.\r\n",
            "GRUB does not trust its kernel",
        ),
        (
            'BdsDxe: failed to load Boot0001 "UEFI QEMU DVD-ROM QM00005 " from PciRoot(0x0): Not Found\r\n'
            "BdsDxe: starting Boot0002\r\nWelcome to GRUB!\r\n",
            None,
        ),
    ],
)
def test_what_secure_boot_refused_is_read_from_the_console(said: str, what: str | None) -> None:
    assert why_refused(f"BdsDxe: loading Boot0001\r\n{said}") == what
