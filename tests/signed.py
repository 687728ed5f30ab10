"""A module, keys, and the module signed with them."""

from __future__ import annotations

from dataclasses import replace

from cryptography import x509

from kmlab.kernel.signing.load_check import GuestKeyring
from kmlab.kernel.signing.pkcs7 import make_key_pair, sign_module
from tests.places import TEST_DATA

DATA = TEST_DATA / "ko-sign"
KO = (DATA / "signdata.ko").read_bytes()
SIGNER = x509.load_der_x509_certificate((DATA / "signer.der").read_bytes())
ECDSA_SIGNER = x509.load_der_x509_certificate((DATA / "ecdsa-signer.der").read_bytes())
RELEASE = "6.1.0-56-cloud-amd64"

KEY, CERTIFICATE = make_key_pair("kmlab test")
OTHER_KEY, OTHER = make_key_pair("kmlab test")
SIGNED = sign_module(KO, KEY, CERTIFICATE)


def recorded(name: str) -> bytes:
    return KO + (DATA / f"{name}.sig").read_bytes()


def guest(*certificates: x509.Certificate, **changes: object) -> GuestKeyring:
    enforcing = GuestKeyring(
        guest="debian", release=RELEASE, arch="x86_64", secure_boot=True, certificates=certificates
    )
    return replace(enforcing, **changes)  # type: ignore[arg-type]


def with_machine(number: int) -> bytes:
    return KO[:18] + number.to_bytes(2, "little") + KO[20:]


def without_section(name: bytes) -> bytes:
    return KO.replace(b"\0" + name + b"\0", b"\0" + b"?" * len(name) + b"\0")
