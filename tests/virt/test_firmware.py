"""Test the choice of a guest's firmware by installed files and the host's abilities."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from kmlab.common.errors import LabError
from kmlab.common.events import Deadline
from kmlab.host.hypervisor import firmware_files
from kmlab.host.process import command
from kmlab.virt.firmware import Firmware, choose, parse_descriptor, why_refused, why_silent
from tests.places import TEST_DATA

DEBIAN_12 = {
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/OVMF/OVMF_VARS.fd",
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
DEBIAN_13 = {path for path in DEBIAN_12 if "4M" in path} | DEBIAN_13_ARM | {"/usr/share/AAVMF/AAVMF_CODE.ms.fd"}
FEDORA = {
    "/usr/share/edk2/ovmf/OVMF_CODE_4M.qcow2",
    "/usr/share/edk2/ovmf/OVMF_CODE_4M.secboot.qcow2",
    "/usr/share/edk2/ovmf/OVMF_VARS_4M.qcow2",
    "/usr/share/edk2/ovmf/OVMF_VARS_4M.secboot.qcow2",
    "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    "/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw",
    "/usr/share/edk2/aarch64/vars-template-pflash.raw",
}
ARCH = {f"/usr/share/edk2/x64/OVMF_{name}.4m.fd" for name in ("CODE", "CODE.secboot", "VARS")}
OPENSUSE = {f"/usr/share/qemu/ovmf-x86_64-{name}.bin" for name in ("4m-code", "4m-vars", "smm-ms-code", "smm-ms-vars")}


def among(*hosts: set[str]) -> Callable[[str], int | None]:
    """The sizes of the files of these hosts: 4 MiB builds, and 2 MiB builds where the name has no 4M or qcow2."""
    installed = set().union(*hosts)

    def size(path: str) -> int | None:
        if path not in installed:
            return None
        if "aarch64" in path or "AAVMF" in path:
            return 64 << 20
        small = path.endswith(("OVMF_CODE.fd", "OVMF_VARS.fd")) or "smm-ms" in path
        variables = (128 if small else 528) << 10
        return variables if "vars" in path.lower() else ((2 if small else 4) << 20) - variables

    return size


def descriptor(code: str, variables: str, *features: str, format: str = "raw", machine: str = "pc-q35-*") -> str:
    """A descriptor in the words of QEMU's specification."""
    arch = "aarch64" if machine.startswith("virt") else "x86_64"
    executable, template = ({"filename": path, "format": format} for path in (code, variables))
    return json.dumps(
        {
            "description": "made up",
            "interface-types": ["uefi"],
            "mapping": {"device": "flash", "executable": executable, "nvram-template": template},
            "targets": [{"architecture": arch, "machines": [machine]}],
            "features": ["acpi-s3", *features],
            "tags": [],
        }
    )


def shipped(release: str) -> list[str]:
    return firmware_files.descriptors([TEST_DATA / "firmware" / release])


FEDORA_TEXTS = [
    descriptor(
        "/usr/share/edk2/ovmf/OVMF_CODE_4M.secboot.qcow2",
        "/usr/share/edk2/ovmf/OVMF_VARS_4M.secboot.qcow2",
        *("enrolled-keys", "requires-smm", "secure-boot"),
        format="qcow2",
    ),
    descriptor("/usr/share/edk2/ovmf/OVMF_CODE_4M.qcow2", "/usr/share/edk2/ovmf/OVMF_VARS_4M.qcow2", format="qcow2"),
    descriptor("/usr/share/edk2/ovmf/OVMF_CODE_4M.qcow2", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
]
ARCH_TEXTS = [
    descriptor(
        "/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
        *("requires-smm", "secure-boot"),
    ),
    descriptor("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
]
OPENSUSE_TEXTS = [
    descriptor(
        "/usr/share/qemu/ovmf-x86_64-smm-ms-code.bin",
        "/usr/share/qemu/ovmf-x86_64-smm-ms-vars.bin",
        *("enrolled-keys", "requires-smm", "secure-boot"),
    ),
    descriptor("/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
]
HOSTS = {
    "debian-12": (DEBIAN_12, shipped("debian-12")),
    "debian-13": (DEBIAN_13, shipped("debian-13")),
    "fedora": (FEDORA, FEDORA_TEXTS),
    "arch": (ARCH, ARCH_TEXTS),
    "opensuse": (OPENSUSE, OPENSUSE_TEXTS),
}


def on(host: str, *, secure_boot: bool, smm: bool = True, arch: str = "x86_64") -> Firmware:
    files, texts = HOSTS[host]
    return choose(arch, secure_boot=secure_boot, smm_available=smm, size=among(files), descriptors=texts)


@pytest.mark.parametrize(
    ("host", "code", "variables", "form", "enrolled"),
    [
        ("debian-12", "OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd", "raw", True),
        ("debian-13", "OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd", "raw", True),
        ("fedora", "OVMF_CODE_4M.secboot.qcow2", "OVMF_VARS_4M.secboot.qcow2", "qcow2", True),
        ("arch", "OVMF_CODE.secboot.4m.fd", "OVMF_VARS.4m.fd", "raw", False),
        ("opensuse", "ovmf-x86_64-smm-ms-code.bin", "ovmf-x86_64-smm-ms-vars.bin", "raw", True),
    ],
)
def test_secure_boot_takes_the_build_that_the_host_describes(
    host: str, code: str, variables: str, form: str, enrolled: bool
) -> None:
    firmware = on(host, secure_boot=True)
    assert (firmware.code.name, firmware.variables.name) == (code, variables)
    assert (firmware.format, firmware.variables_format, firmware.enrolled) == (form, form, enrolled)
    assert firmware.secure and firmware.smm
    assert ("Microsoft's keys that kmlab enrolled" in firmware.why) != enrolled


@pytest.mark.parametrize(
    ("host", "code", "variables"),
    [
        ("debian-12", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
        ("debian-13", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
        ("fedora", "OVMF_CODE_4M.qcow2", "OVMF_VARS_4M.qcow2"),
        ("arch", "OVMF_CODE.4m.fd", "OVMF_VARS.4m.fd"),
        ("opensuse", "ovmf-x86_64-4m-code.bin", "ovmf-x86_64-4m-vars.bin"),
    ],
)
def test_a_plain_guest_takes_the_build_without_keys_and_without_smm(host: str, code: str, variables: str) -> None:
    for smm in (False, True):
        firmware = on(host, secure_boot=False, smm=smm)
        assert (firmware.code.name, firmware.variables.name) == (code, variables)
        assert not firmware.secure and not firmware.smm


def test_a_build_without_smm_enforces_secure_boot_only_in_older_packages() -> None:
    """Since edk2 2023.11-7, Debian and Ubuntu build no Secure Boot into OVMF_CODE_4M.fd."""
    assert on("debian-12", secure_boot=True, smm=False).code.name == "OVMF_CODE_4M.fd"
    for host in ("debian-13", "fedora", "arch", "opensuse"):
        with pytest.raises(LabError, match="needs SMM, which this host does not have") as error:
            on(host, secure_boot=True, smm=False)
        assert "accel: tcg" in (error.value.hint or "")


@pytest.mark.parametrize("secure", [False, True])
def test_arm64_firmware_is_described_too(secure: bool) -> None:
    firmware = on("debian-13", secure_boot=secure, arch="aarch64")
    assert firmware.code.name == ("AAVMF_CODE.ms.fd" if secure else "AAVMF_CODE.no-secboot.fd")
    assert (firmware.machine, firmware.smm) == ("virt", False)


@pytest.mark.parametrize("host", ["fedora", "arch"])
def test_a_store_of_another_size_is_never_combined_with_a_code(host: str) -> None:
    files, texts = HOSTS[host]
    sizes = among(files)
    broken = lambda path: 131072 if "VARS" in path else sizes(path)  # noqa: E731
    with pytest.raises(LabError, match="no UEFI firmware"):
        choose("x86_64", secure_boot=False, smm_available=True, size=broken, descriptors=texts)
    first = [descriptor("/usr/share/edk2/ovmf/OVMF_CODE_4M.qcow2", "/usr/share/edk2/ovmf/OVMF_VARS.fd"), *texts]
    chosen = choose("x86_64", secure_boot=False, smm_available=True, size=sizes, descriptors=first)
    assert chosen.variables.name != "OVMF_VARS.fd"


def damaged(change: Callable[[dict[str, object]], object]) -> str:
    about = json.loads(descriptor("/c", "/v"))
    change(about)
    return json.dumps(about)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        descriptor("/c", "/v", machine="pc-i440fx-*"),
        descriptor("/c", "/v", format="vmdk"),
        damaged(lambda about: about.update({"interface-types": ["bios"]})),
        damaged(lambda about: about["mapping"].update({"device": "memory"})),  # type: ignore[attr-defined]
        damaged(lambda about: about["mapping"].update({"mode": "stateless"})),  # type: ignore[attr-defined]
        damaged(lambda about: about["mapping"].pop("nvram-template")),  # type: ignore[attr-defined]
        damaged(lambda about: about.update(targets=None)),
    ],
)
def test_a_descriptor_of_something_else_is_passed_over(text: str) -> None:
    assert parse_descriptor(text) == []
    with_others = [text, *HOSTS["arch"][1]]
    assert choose("x86_64", secure_boot=False, smm_available=True, size=among(ARCH), descriptors=with_others)


def test_a_descriptor_of_the_user_hides_that_of_the_distribution(tmp_path: Path) -> None:
    user, system, distribution = (tmp_path / name for name in ("user", "system", "distribution"))
    for folder, names in ((user, ["40-a", "60-c"]), (system, ["60-c", "30-d"]), (distribution, ["40-a", "50-b"])):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.json").write_text("" if (folder, name) == (user, "40-a") else f"{folder.name} {name}")
    (user / "README").write_text("not a descriptor")
    places = [user, system, tmp_path / "absent", distribution]
    assert firmware_files.descriptors(places) == ["system 30-d", "distribution 50-b", "user 60-c"]


def test_the_folders_are_those_of_qemu_s_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    ours = [str(tmp_path / "qemu/firmware"), "/etc/qemu/firmware", "/usr/share/qemu/firmware"]
    assert [str(folder) for folder in firmware_files.folders()] == ours


def test_the_size_of_a_flash_image_is_that_which_the_guest_sees(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(528 << 10))
    argv: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "qcow2", str(528 << 10)]
    command.run(argv, deadline=Deadline(30))
    sizes: Iterable[int | None] = (firmware_files.flash_size(str(tmp_path / n)) for n in ("raw", "qcow2", "absent"))
    assert list(sizes) == [528 << 10, 528 << 10, None]


def test_secure_boot_uses_smm_where_there_is_smm() -> None:
    firmware = choose("x86_64", secure_boot=True, smm_available=True, size=among(DEBIAN_12))
    assert firmware.code == Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
    assert firmware.variables == Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
    assert (firmware.machine, firmware.smm, firmware.secure, firmware.format) == ("q35", True, True, "raw")


def test_secure_boot_without_smm_uses_the_firmware_without_smm_and_says_what_is_lost() -> None:
    firmware = choose("x86_64", secure_boot=True, smm_available=False, size=among(DEBIAN_12))
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
    firmware = choose("x86_64", secure_boot=True, smm_available=True, size=among(installed))
    assert firmware.smm is False
    assert "not installed" in firmware.why


@pytest.mark.parametrize("smm", [False, True])
def test_without_secure_boot_the_store_is_empty_and_smm_is_off(smm: bool) -> None:
    firmware = choose("amd64", secure_boot=False, smm_available=smm, size=among(DEBIAN_12))
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
    firmware = choose(arch, secure_boot=secure, smm_available=True, size=among(installed))
    assert firmware.code.name == code
    assert (firmware.machine, firmware.smm, firmware.secure) == ("virt", False, secure)


def test_code_without_its_variables_is_not_chosen() -> None:
    only_code = {path for path in DEBIAN_12 if "VARS" not in path}
    with pytest.raises(LabError, match="no UEFI firmware with Secure Boot for x86_64") as error:
        choose("x86_64", secure_boot=True, smm_available=True, size=among(only_code))
    assert "install ovmf" in (error.value.hint or "")
    assert "OVMF_CODE_4M.secboot.fd" in error.value.message


def test_an_unknown_architecture_is_reported() -> None:
    with pytest.raises(LabError, match="no UEFI firmware for riscv64"):
        choose("riscv64", secure_boot=False, smm_available=False, size=among(DEBIAN_12))


def test_silence_is_explained_by_smm_if_the_firmware_needs_it() -> None:
    message, hint = why_silent(choose("x86_64", secure_boot=True, smm_available=True, size=among(DEBIAN_12)))
    assert "OVMF_CODE_4M.secboot.fd printed nothing: it does not run if SMM is missing" in message
    assert "without SMM" in hint
    _, hint = why_silent(choose("aarch64", secure_boot=True, smm_available=True, size=among(DEBIAN_12)))
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
