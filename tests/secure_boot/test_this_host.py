"""Why this host's own kernel refuses a module: from files that a test writes, as the kernel and shim leave them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from kmlab.host.key_files import KeyPaths
from kmlab.host.running_kernel import read_running_kernel
from kmlab.kernel.module.modinfo import parse_modinfo
from kmlab.kernel.signing.guest_keyring import signature_list
from kmlab.kernel.signing.key_ids import kernel_name
from kmlab.kernel.signing.pkcs7 import make_key_pair, sign_module
from kmlab.secure_boot import sign_text
from kmlab.secure_boot.this_host import HostExplanation, explain_on_host, host_state, state_lines
from tests.places import TEST_DATA
from tests.program import Program

KO = (TEST_DATA / "ko" / "frames.ko").read_bytes()
ABOUT = parse_modinfo(KO, "frames.ko")
RELEASE = ABOUT.release or ""
KEY, CERTIFICATE = make_key_pair("mine")
DER = CERTIFICATE.public_bytes(Encoding.DER)
SIGNED = sign_module(KO, KEY, CERTIFICATE, name="frames.ko")
SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"


class Machine:
    """A root folder with what a kernel shows of itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "frames.ko"
        self.own = KeyPaths(root / "keys" / "mok.key", root / "keys" / "mok.der", "this folder's", True)

    def write(self, place: str, content: str | bytes) -> None:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def variable(self, name: str, vendor: str, value: bytes) -> None:
        self.write(f"sys/firmware/efi/efivars/{name}-{vendor}", b"\x07\0\0\0" + value)

    def secure(self) -> Machine:
        self.variable("SecureBoot", "8be4df61-93ca-11d2-aa0d-00e098032b8c", b"\x01")
        self.write("sys/module/module/parameters/sig_enforce", "Y\n")
        self.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
        (self.root / "lib/modules" / RELEASE / "build").mkdir(parents=True)
        return self

    def why(self, content: bytes) -> HostExplanation:
        self.file.write_bytes(content)
        state = host_state(read_running_kernel(self.root, release=RELEASE, arch="x86_64"))
        return explain_on_host(self.file, state, self.own)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_secure_boot_the_file_loads_and_nothing_is_to_be_done(machine: Machine) -> None:
    machine.write(f"lib/modules/{RELEASE}/build/Makefile", "")
    found = machine.why(KO)
    assert (found.verdict.loads, found.commands) == (True, ())
    assert "this machine asks for no signature" in found.verdict.why


def test_an_unsigned_file_needs_a_signature_and_the_key_to_be_enrolled(machine: Machine) -> None:
    found = machine.secure().why(KO)
    assert (found.verdict.loads, found.verdict.why) == (False, "it is not signed")
    assert found.commands == (
        f"kmlab sign {machine.file}",
        f"sudo mokutil --import {machine.own.certificate}",
        "sudo reboot",
    )


def test_a_key_that_is_enrolled_loads_read_with_and_without_root(machine: Machine) -> None:
    machine.secure()
    machine.variable("MokListRT", SHIM, signature_list(DER))
    assert machine.why(SIGNED).verdict.loads is True, "for a user who sees none of the kernel's keys"
    machine.write("proc/keys", "1d107ec3 I------     1 perm 1f0b0000     0     0 keyring   .builtin_trusted_keys: 1\n")
    assert machine.why(SIGNED).verdict.loads is False, "root sees that the kernel did not load it"
    key = f"1a I------ 1 perm 1f030000 0 0 asymmetri {kernel_name(CERTIFICATE)}: X509.rsa 9f9d8d37 []\n"
    machine.write("proc/keys", key)
    assert machine.why(SIGNED).verdict.loads is True


def test_a_signed_file_of_a_key_that_is_not_enrolled_needs_only_the_enrolment(machine: Machine) -> None:
    machine.write("keys/mok.der", DER)
    found = machine.secure().why(SIGNED)
    assert found.verdict.loads is False and "is not enrolled in this machine" in found.verdict.why
    assert found.commands[-2:] == (f"sudo mokutil --import {machine.own.certificate}", "sudo reboot")


def test_an_altered_file_is_signed_again_with_the_enrolled_key(machine: Machine) -> None:
    machine.write("keys/mok.der", DER)
    machine.secure().variable("MokListRT", SHIM, signature_list(DER))
    altered = bytearray(SIGNED)
    altered[200] ^= 1
    found = machine.why(bytes(altered))
    assert found.verdict.loads is False and "altered" in found.verdict.why
    assert found.commands == (f"kmlab sign {machine.file}",)


def test_a_key_of_the_firmware_may_do(machine: Machine) -> None:
    machine.secure().variable("db", "d719b2cb-3d3a-4596-a3bc-dad00e67656f", signature_list(DER))
    found = machine.why(SIGNED)
    assert found.verdict.loads is None and ".platform" in found.verdict.why


def test_another_kernel_s_file_is_built_again(machine: Machine) -> None:
    state = host_state(read_running_kernel(machine.root, release="6.99.0-1-amd64", arch="x86_64"))
    machine.file.write_bytes(KO)
    found = explain_on_host(machine.file, state, None)
    assert found.verdict.loads is not True and "this machine runs 6.99.0-1-amd64" in found.verdict.why
    assert found.commands[-1] == f"make -C /lib/modules/6.99.0-1-amd64/build M={machine.root} clean modules"
    assert "linux-headers-6.99.0-1-amd64" in found.commands[0]


def test_another_vermagic_of_the_same_release_is_refused(machine: Machine) -> None:
    other = KO.replace(b"SMP preempt ", b"SMP xreempt ")
    assert other != KO
    machine.secure().write(f"lib/modules/{RELEASE}/kernel/fs/one.ko", other)
    found = machine.why(KO)
    assert found.verdict.loads is False
    assert f"'{ABOUT.vermagic}'" in found.verdict.why and "xreempt" in found.verdict.why


def test_a_key_that_waits_is_said(machine: Machine) -> None:
    machine.secure().variable("MokNew", SHIM, signature_list(DER))
    lines = state_lines(host_state(read_running_kernel(machine.root, release=RELEASE, arch="x86_64")))
    assert "Secure Boot on, lockdown integrity, unsigned modules refused" in lines[0]
    assert any("a key waits to be enrolled" in line for line in lines)
    assert any("only root can see" in line for line in lines)


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 100, signature_list(DER)[:-7], signature_list(b"no certificate")])
def test_variables_that_are_damaged_have_no_keys(machine: Machine, garbage: bytes) -> None:
    machine.secure()
    machine.variable("MokListRT", SHIM, garbage)
    machine.variable("db", "d719b2cb-3d3a-4596-a3bc-dad00e67656f", garbage)
    machine.write(f"lib/modules/{RELEASE}/kernel/bad.ko", b"\x7fELF" + garbage)
    machine.write("proc/keys", b"\xff\xfe\n")
    assert machine.why(SIGNED).verdict.loads is False


def test_a_file_s_name_is_quoted_in_commands_and_printable_in_text(machine: Machine) -> None:
    machine.secure()
    machine.file = machine.root / "a b;\x1b[1m.ko"
    found = machine.why(KO)
    assert found.commands[0].startswith("kmlab sign '")
    assert "after the reboot" in "\n".join(sign_text.why_lines([found])).lower()


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_and_explain_without_a_lab_answer_for_this_host(xdg: Path) -> None:
    (xdg / "frames.ko").write_bytes(KO)
    kmlab = Program(xdg)
    answer = json.loads(kmlab("why", "frames.ko", "--json").out)
    assert [guest["guest"] for guest in answer["files"][0]["guests"]] == ["this host"]
    assert answer["host"]["release"] == read_running_kernel().release
    lines = kmlab("why", "frames.ko").out
    assert lines == kmlab("sign", "--explain", "frames.ko").out
    assert lines.startswith("this host: kernel ")
    explained = json.loads(kmlab("sign", "--explain", "frames.ko", "--json").out)
    assert explained["files"][0]["guests"] == answer["files"][0]["guests"]
    assert not (xdg / "state").exists(), "nothing is made"


@pytest.mark.parametrize("words", [("why", "absent.ko"), ("why", "."), ("why",)])
def test_what_is_no_module_is_bad_input(xdg: Path, words: tuple[str, ...]) -> None:
    assert Program(xdg)(*words).code == 2
