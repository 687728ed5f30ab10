"""What a guest's kernel goes by when it is asked to load a module: asked of the guest once, kept as JSON.

Follows load_uefi.c and machine_keyring.c in security/integrity of the kernel, and the UEFI specification for
EFI_SIGNATURE_LIST.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kmlab.kernel.signing.key_ids import kernel_name
from kmlab.kernel.signing.load_check import GuestKeyring

QUESTION = (
    "echo release=$(uname -r); echo arch=$(uname -m); "
    "echo sig_enforce=$(cat /sys/module/module/parameters/sig_enforce 2>/dev/null); "
    "echo lockdown=$(cat /sys/kernel/security/lockdown 2>/dev/null); "
    "echo secure_boot=$(tail -c 1 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c "
    "2>/dev/null | od -An -tu1); "
    "echo mok=$(base64 -w0 /sys/firmware/efi/mok-variables/MokListRT 2>/dev/null); cat /proc/keys"
)
"""A line for the guest's shell, as root. shim leaves its list of keys where Linux shows it since 5.10."""

_X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")
"""EFI_CERT_X509_GUID, as it lies in memory."""
_LIST = struct.Struct("<16sIII")
_OWNER_SIZE = 16


def parse_keyring(guest: str, answer: str) -> GuestKeyring:
    """Return the answer to QUESTION; of the enrolled certificates, with Secure Boot, those that the kernel loaded."""
    said = {key: value.strip() for key, found, value in map(_pair, answer.splitlines()) if found}
    chosen = re.search(r"\[(\w+)\]", said.get("lockdown", ""))
    names = dict.fromkeys(re.findall(r"asymmetri (.+?): X509\.\w+ ", answer))
    secure = said.get("secure_boot") == "1"
    enrolled = [c for c in _enrolled(said.get("mok", "")) if not secure or kernel_name(c) in names]
    own = [name for name in names if name not in map(kernel_name, enrolled)]
    return GuestKeyring(
        guest=guest,
        release=said.get("release", ""),
        arch=said.get("arch", ""),
        secure_boot=secure,
        sig_enforce={"Y": True, "N": False}.get(said.get("sig_enforce", "")),
        lockdown=chosen[1] if chosen else "none",
        certificates=tuple(enrolled),
        kernel_keys=tuple(own),
    )


def to_json(keyring: GuestKeyring) -> dict[str, Any]:
    """All but the guest's name: guests of one checkpoint have one keyring."""
    return {
        "release": keyring.release,
        "arch": keyring.arch,
        "secure_boot": keyring.secure_boot,
        "sig_enforce": keyring.sig_enforce,
        "lockdown": keyring.lockdown,
        "certificates": [base64.b64encode(der(c)).decode() for c in keyring.certificates],
        "kernel_keys": list(keyring.kernel_keys),
    }


def from_json(guest: str, value: Mapping[str, Any]) -> GuestKeyring:
    """Return what `to_json` wrote."""
    return GuestKeyring(
        guest=guest,
        release=str(value["release"]),
        arch=str(value["arch"]),
        secure_boot=bool(value["secure_boot"]),
        sig_enforce=value["sig_enforce"],
        lockdown=str(value["lockdown"]),
        certificates=tuple(x509.load_der_x509_certificate(base64.b64decode(c)) for c in value["certificates"]),
        kernel_keys=tuple(map(str, value["kernel_keys"])),
    )


def parse_signature_lists(content: bytes) -> Iterator[bytes]:
    """Return the certificates (DER) in the value of a UEFI variable such as MokList; stop where it is damaged."""
    at = 0
    while at + _LIST.size <= len(content):
        kind, size, header, each = _LIST.unpack_from(content, at)
        if not _LIST.size <= size <= len(content) - at or each <= _OWNER_SIZE:
            return
        begin, end = at + _LIST.size + header, at + size
        if kind == _X509:
            for entry in range(begin, end - each + 1, each):
                yield content[entry + _OWNER_SIZE : entry + each]
        at += size


def signature_list(certificate: bytes) -> bytes:
    """Make the EFI_SIGNATURE_LIST of one certificate (DER), put there by nobody."""
    each = _OWNER_SIZE + len(certificate)
    return _LIST.pack(_X509, _LIST.size + each, 0, each) + bytes(_OWNER_SIZE) + certificate


def _enrolled(encoded: str) -> Iterator[x509.Certificate]:
    try:
        yield from certificates_in(base64.b64decode(encoded))
    except ValueError:
        return


def certificates_in(content: bytes) -> Iterator[x509.Certificate]:
    """Yield the certificates in the value of a UEFI variable such as MokList, without those that nobody can read."""
    for encoded in parse_signature_lists(content):
        try:
            yield x509.load_der_x509_certificate(encoded)
        except ValueError:
            continue


def der(certificate: x509.Certificate) -> bytes:
    """Return the certificate as it is enrolled."""
    return certificate.public_bytes(Encoding.DER)


def _pair(line: str) -> tuple[str, str, str]:
    return line.partition("=")
