"""Signing modules, taking signatures apart, and saying which guest would take which module."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from kmlab.common.errors import ConfigError
from kmlab.kernel.module.modinfo import parse_modinfo
from kmlab.kernel.signing.key_ids import kernel_name, key_id
from kmlab.kernel.signing.pkcs7 import MODULES_ONLY, make_key_pair, sign_module
from kmlab.kernel.signing.signature import (
    MAGIC,
    TRAILER,
    Verdict,
    read_signature,
    signed_content,
    strip_signature,
    verify,
)
from tests.signed import (
    CERTIFICATE,
    DATA,
    ECDSA_SIGNER,
    KEY,
    KO,
    OTHER,
    OTHER_KEY,
    SIGNED,
    SIGNER,
    recorded,
    with_machine,
    without_section,
)

# Signing


def test_a_signed_module_verifies_with_its_own_certificate_and_with_no_other() -> None:
    assert verify(SIGNED, CERTIFICATE) is Verdict.VALID
    assert verify(SIGNED, OTHER) is Verdict.WRONG_KEY
    assert verify(KO, CERTIFICATE) is Verdict.UNSIGNED


def test_the_module_itself_is_not_changed_by_signing() -> None:
    assert SIGNED.startswith(KO)
    assert signed_content(SIGNED) == KO
    assert strip_signature(SIGNED) == KO


def test_signing_again_replaces_the_signature() -> None:
    again = sign_module(SIGNED, OTHER_KEY, OTHER)
    assert again.count(MAGIC) == 1
    assert verify(again, OTHER) is Verdict.VALID
    assert sign_module(again, KEY, CERTIFICATE) == SIGNED


def test_a_doubly_signed_module_loses_both_signatures() -> None:
    twice = SIGNED + recorded("issuer-serial")[len(KO) :]
    assert strip_signature(twice) == KO
    assert sign_module(twice, KEY, CERTIFICATE) == SIGNED


def test_the_information_block_has_the_form_that_the_kernel_demands() -> None:
    block = SIGNED[-len(MAGIC) - TRAILER.size : -len(MAGIC)]
    assert TRAILER.size == 12
    assert block[:8] == bytes([0, 0, 2, 0, 0, 0, 0, 0])
    assert int.from_bytes(block[8:], "big") == len(SIGNED) - len(KO) - 12 - len(MAGIC)


@pytest.mark.parametrize("command", ["cms", "smime"])
@pytest.mark.parametrize("altered", [False, True])
def test_openssl_agrees_about_our_signature(tmp_path: Path, command: str, altered: bool) -> None:
    (tmp_path / "ko").write_bytes(KO[:-1] + b"!" if altered else KO)
    (tmp_path / "p7s").write_bytes(SIGNED[len(KO) : -len(MAGIC) - TRAILER.size])
    (tmp_path / "pem").write_bytes(CERTIFICATE.public_bytes(serialization.Encoding.PEM))
    trust = ["-certfile", "pem", "-nointern", "-noverify"]
    verified = subprocess.run(
        ["openssl", command, "-verify", "-binary", "-inform", "DER", "-in", "p7s", "-content", "ko", *trust],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (verified.returncode == 0) is not altered, verified.stderr.decode()


@pytest.mark.parametrize("ko", [b"", b"hello", b"\x7fELF", KO[:100], KO[:-1], b"\x7fELF\x09\x09" + KO[6:]])
def test_what_is_no_module_is_not_signed(ko: bytes) -> None:
    with pytest.raises(ConfigError, match=r"hello\.ko: is (not a kernel module|cut short|not made for)"):
        sign_module(ko, KEY, CERTIFICATE, name="hello.ko")


def test_a_program_is_told_apart_from_a_module() -> None:
    with pytest.raises(ConfigError, match="not a kernel module: it is linked already"):
        sign_module(KO[:16] + b"\x02" + KO[17:], KEY, CERTIFICATE)


def test_an_object_file_without_modinfo_is_not_signed() -> None:
    with pytest.raises(ConfigError, match=r"no \.modinfo"):
        sign_module(without_section(b".modinfo"), KEY, CERTIFICATE)


def test_a_module_of_another_machine_is_not_signed_for_this_one() -> None:
    arm = with_machine(183)
    with pytest.raises(ConfigError, match="built for aarch64, not for x86_64"):
        sign_module(arm, KEY, CERTIFICATE, arch="x86_64")
    assert verify(sign_module(arm, KEY, CERTIFICATE, arch="aarch64"), CERTIFICATE) is Verdict.VALID


@pytest.mark.parametrize(
    ("compressed", "how"),
    [(lzma.compress(KO), "xz"), (gzip.compress(KO), "gzip"), (b"\x28\xb5\x2f\xfd rest", "zstd")],
)
def test_a_compressed_module_is_not_signed_and_the_remedy_is_named(compressed: bytes, how: str) -> None:
    with pytest.raises(ConfigError, match=f"hello.ko: is compressed \\({how}\\); a module is signed first") as error:
        sign_module(compressed, KEY, CERTIFICATE, name="hello.ko")
    assert "sign the .ko" in (error.value.hint or "")


def test_an_ecdsa_key_is_refused_with_the_kernels_that_cannot_read_it() -> None:
    with pytest.raises(ConfigError, match=r"ECDSA.*before 5\.13.*Debian 12's 6\.1"):
        sign_module(KO, ec.generate_private_key(ec.SECP256R1()), ECDSA_SIGNER)


def test_keys_that_kernels_cannot_verify_are_refused() -> None:
    with pytest.raises(ConfigError, match="not an RSA key"):
        sign_module(KO, ed25519.Ed25519PrivateKey.generate(), CERTIFICATE)
    with pytest.raises(ConfigError, match="2560 bits"):
        sign_module(KO, rsa.generate_private_key(65537, 2560), CERTIFICATE)


def test_a_certificate_of_another_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not belong to this key"):
        sign_module(KO, OTHER_KEY, CERTIFICATE)


# The key pair


def test_the_certificate_is_for_modules_and_not_for_boot_loaders() -> None:
    usage = CERTIFICATE.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CODE_SIGNING, MODULES_ONLY]
    assert not CERTIFICATE.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert KEY.key_size == 2048
    CERTIFICATE.verify_directly_issued_by(CERTIFICATE)


def test_the_certificate_is_valid_now_and_for_ten_years() -> None:
    _, certificate = make_key_pair("dates", datetime(2026, 2, 28, 12, tzinfo=timezone.utc))
    assert certificate.not_valid_before_utc == datetime(2026, 2, 27, 12, tzinfo=timezone.utc)
    assert certificate.not_valid_after_utc.year == 2036


@pytest.mark.parametrize("name", ["", "n" * 65])
def test_a_name_that_x509_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="1 to 64 characters"):
        make_key_pair(name)


def test_keys_are_called_as_the_kernel_calls_them() -> None:
    digest = x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()).digest.hex()
    assert key_id(CERTIFICATE) == digest
    assert kernel_name(CERTIFICATE) == f"kmlab test: {digest}"
    assert kernel_name(SIGNER).startswith("kmlab tests: Recorded signer: ")


# Reading what the kernel's own tool signed


@pytest.mark.parametrize("name", ["issuer-serial", "ecdsa"])
def test_the_signer_is_read_as_modinfo_reads_it(name: str) -> None:
    lines = (line.split(":", 1) for line in (DATA / f"{name}.modinfo").read_text().splitlines())
    modinfo = {field: value.strip() for field, value in lines}
    signature = read_signature(recorded(name))
    assert signature is not None
    assert signature.well_formed
    assert signature.signer == modinfo["signer"]
    assert signature.serial == modinfo["sig_key"].replace(":", "").lower()
    assert signature.digest == modinfo["sig_hashalgo"]


def test_signatures_of_sign_file_verify() -> None:
    assert verify(recorded("issuer-serial"), SIGNER) is Verdict.VALID
    assert verify(recorded("key-id"), SIGNER) is Verdict.VALID
    assert verify(recorded("ecdsa"), ECDSA_SIGNER) is Verdict.VALID
    assert verify(recorded("ecdsa"), SIGNER) is Verdict.WRONG_KEY


def test_a_signature_by_key_id_has_no_signer_but_the_id() -> None:
    signature = read_signature(recorded("key-id"))
    assert signature is not None
    assert (signature.signer, signature.serial) == ("", "")
    assert signature.key_id == key_id(SIGNER)
    assert (signature.digest, signature.algorithm) == ("sha512", "rsa")


def test_signed_attributes_are_malformed_for_a_module() -> None:
    signature = read_signature(recorded("attributes"))
    assert signature is not None
    assert signature.signer == "Recorded signer"
    assert "signed attributes" in (signature.problem or "")
    assert verify(recorded("attributes"), SIGNER) is Verdict.MALFORMED


def test_a_changed_module_or_signature_is_altered() -> None:
    assert verify(KO[:-1] + b"!" + SIGNED[len(KO) :], CERTIFICATE) is Verdict.ALTERED
    end = len(SIGNED) - len(MAGIC) - TRAILER.size
    changed = SIGNED[: end - 1] + bytes([SIGNED[end - 1] ^ 1]) + SIGNED[end:]
    assert verify(changed, CERTIFICATE) is Verdict.ALTERED


@pytest.mark.parametrize(
    ("tail", "problem"),
    [
        (MAGIC, "impossible length"),
        (TRAILER.pack(0, 0, 2, 0, 0, bytes(3), 1 << 31) + MAGIC, "impossible length"),
        (b"x" * 9 + TRAILER.pack(0, 0, 1, 0, 0, bytes(3), 9) + MAGIC, "of a kind"),
        (b"x" * 9 + TRAILER.pack(0, 4, 2, 0, 0, bytes(3), 9) + MAGIC, "must be zero"),
        (b"x" * 9 + TRAILER.pack(0, 0, 2, 0, 0, bytes(3), 9) + MAGIC, "not a PKCS#7 message"),
    ],
)
def test_a_malformed_signature_says_what_is_wrong(tail: bytes, problem: str) -> None:
    signature = read_signature(KO + tail)
    assert signature is not None
    assert problem in (signature.problem or "")
    assert verify(KO + tail, CERTIFICATE) is Verdict.MALFORMED


def test_a_signature_of_impossible_length_cannot_be_taken_off() -> None:
    with pytest.raises(ConfigError, match="impossible length"):
        strip_signature(KO + MAGIC)


def test_a_file_of_nothing_but_the_magic_is_malformed() -> None:
    assert verify(MAGIC, CERTIFICATE) is Verdict.MALFORMED


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(SIGNED) - 1), flip=st.integers(1, 255))
def test_no_changed_byte_leaves_a_signature_valid(at: int, flip: int) -> None:
    changed = bytearray(SIGNED)
    changed[at] ^= flip
    verdict = verify(bytes(changed), CERTIFICATE)
    # The kernel and openssl look neither at the list of digests nor at the parameters of an algorithm.
    assert verdict is not Verdict.VALID or len(KO) <= at < len(SIGNED) - 256 - TRAILER.size - len(MAGIC)


@settings(max_examples=300, deadline=None)
@given(message=st.binary(max_size=200))
def test_no_message_makes_the_reader_fail(message: bytes) -> None:
    ko = KO + message + TRAILER.pack(0, 0, 2, 0, 0, bytes(3), len(message)) + MAGIC
    assert verify(ko, CERTIFICATE) is Verdict.MALFORMED


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 63), value=st.integers(0, 255), cut=st.integers(0, len(KO)))
def test_a_damaged_file_is_a_config_error_or_a_module(at: int, value: int, cut: int) -> None:
    damaged = bytearray(KO)
    damaged[at] = value
    for ko in (bytes(damaged), bytes(damaged[:cut]), KO[:cut]):
        try:
            parse_modinfo(ko)
        except ConfigError as error:
            assert error.hint
