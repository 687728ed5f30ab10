"""kmlab.kernel.explain: what a module file is, and whether a guest would take it."""

from __future__ import annotations

import gzip
import lzma

import pytest

from kmlab.common.errors import ConfigError
from kmlab.kernel.module.modinfo import parse_modinfo
from kmlab.kernel.signing.key_ids import kernel_name, key_id
from kmlab.kernel.signing.load_check import describe, explain
from kmlab.kernel.signing.pkcs7 import sign_module
from kmlab.kernel.signing.signature import Verdict
from tests.signed import (
    CERTIFICATE,
    ECDSA_SIGNER,
    KEY,
    KO,
    OTHER,
    RELEASE,
    SIGNED,
    SIGNER,
    guest,
    recorded,
    without_section,
)

# The file's own facts


def test_a_module_tells_its_machine_release_and_debug_information() -> None:
    module = parse_modinfo(KO)
    assert (module.machine, module.release) == ("x86_64", RELEASE)
    assert module.name == "signdata"
    assert module.has_debug and module.has_symbols and module.has_versions


def test_a_stripped_module_is_recognised() -> None:
    assert describe(KO).stripped is False
    assert describe(KO.replace(b".debug_info\0", b".dubeg_info\0")).stripped is True


@pytest.mark.parametrize(("compress", "how"), [(lzma.compress, "xz"), (gzip.compress, "gzip")])
def test_a_compressed_module_is_looked_into(compress: object, how: str) -> None:
    assert callable(compress)
    about = describe(compress(SIGNED), [OTHER, CERTIFICATE])
    assert about.compressed == how
    assert about.verdict is Verdict.VALID
    assert about.certificate == CERTIFICATE
    assert not about.signed_outside


def test_a_signature_outside_the_compression_is_not_the_modules() -> None:
    outside = lzma.compress(KO) + SIGNED[len(KO) :]
    about = describe(outside, [CERTIFICATE])
    assert about.signed_outside
    assert about.verdict is Verdict.UNSIGNED
    assert "compressed first and signed after" in explain(outside, guest(CERTIFICATE)).why


# What a guest would do


def test_an_enrolled_key_loads_under_secure_boot() -> None:
    told = explain(SIGNED, guest(OTHER, CERTIFICATE))
    assert told.loads is True
    assert told.why == f"it is signed by '{kernel_name(CERTIFICATE)}', which is enrolled"
    assert told.remedy == ""


@pytest.mark.parametrize(
    ("ko", "why"),
    [
        (KO, "it is not signed"),
        (recorded("issuer-serial"), "signed by 'Recorded signer', whose key is not enrolled"),
        (recorded("key-id"), f"signed by 'key {key_id(SIGNER)}', whose key is not enrolled"),
        (KO[:-1] + b"!" + SIGNED[len(KO) :], "altered after 'kmlab test: "),
        (recorded("attributes"), "carries signed attributes"),
        (SIGNED + b"\n", "something was appended after its signature"),
    ],
)
def test_what_secure_boot_refuses_is_told_apart(ko: bytes, why: str) -> None:
    told = explain(ko, guest(CERTIFICATE))
    assert told.loads is False
    assert why in told.why
    assert told.remedy


def test_a_signature_that_was_there_before_was_stripped_off() -> None:
    told = explain(KO, guest(CERTIFICATE), was_signed=True)
    assert told.loads is False
    assert "stripped off" in told.why
    assert told.remedy.startswith("strip first, sign after")


def test_an_unsigned_module_without_debug_information_may_have_been_stripped() -> None:
    told = explain(KO.replace(b".debug_info\0", b".dubeg_info\0"), guest(CERTIFICATE))
    assert "strip may have taken both" in told.why


@pytest.mark.parametrize("ko", [KO, SIGNED, recorded("issuer-serial"), KO[:-1] + b"!" + SIGNED[len(KO) :]])
def test_without_secure_boot_anything_well_formed_loads_and_taints(ko: bytes) -> None:
    told = explain(ko, guest(CERTIFICATE, secure_boot=False))
    assert told.loads is True
    assert "taints the kernel (E)" in told.why


def test_a_malformed_signature_is_refused_even_without_secure_boot() -> None:
    assert explain(recorded("attributes"), guest(secure_boot=False)).loads is False


@pytest.mark.parametrize("how", [{"sig_enforce": True}, {"lockdown": "integrity"}])
def test_enforcement_without_secure_boot_does_not_read_the_enrolled_keys(how: dict[str, object]) -> None:
    told = explain(SIGNED, guest(CERTIFICATE, secure_boot=False, **how))
    assert told.loads is False
    assert "only with Secure Boot on" in told.why


def test_secure_boot_without_enforcement_takes_a_foreign_key() -> None:
    assert explain(recorded("issuer-serial"), guest(CERTIFICATE, sig_enforce=False)).loads is True


def test_the_kernels_own_key_can_only_be_checked_by_the_kernel() -> None:
    keyring = guest(kernel_keys=(f"kmlab tests: Recorded signer: {key_id(SIGNER)}",))
    for name in ("issuer-serial", "key-id"):
        told = explain(recorded(name), keyring)
        assert told.loads is None
        assert "the kernel's own key" in told.why


def test_another_machine_is_refused_whatever_the_signature() -> None:
    told = explain(SIGNED, guest(CERTIFICATE, arch="aarch64"))
    assert told.loads is False
    assert told.why == "it was built for x86_64; this guest is aarch64"


def test_another_release_is_refused_unless_symbol_versions_may_save_it() -> None:
    told = explain(SIGNED, guest(CERTIFICATE, release="6.12.9-amd64"))
    assert told.loads is None
    assert f"built for kernel {RELEASE}; this guest runs 6.12.9-amd64" in told.why
    unversioned = sign_module(without_section(b"__versions"), KEY, CERTIFICATE)
    assert explain(unversioned, guest(CERTIFICATE, release="6.12.9-amd64")).loads is False


def test_a_module_without_its_symbol_table_never_loads() -> None:
    bare = sign_module(without_section(b".symtab"), KEY, CERTIFICATE)
    told = explain(bare, guest(CERTIFICATE, secure_boot=False))
    assert told.loads is False
    assert "symbol table" in told.why


def test_an_ecdsa_signature_depends_on_the_kernel() -> None:
    assert explain(recorded("ecdsa"), guest(ECDSA_SIGNER)).loads is None
    old = explain(recorded("ecdsa"), guest(ECDSA_SIGNER, release="5.10.0-30-amd64"))
    assert old.loads is False
    assert "5.13" in old.why


def test_a_digest_other_than_sha256_may_be_missing() -> None:
    told = explain(recorded("key-id"), guest(SIGNER))
    assert told.loads is None
    assert "sha512" in told.why


def test_zstd_is_not_looked_into_and_that_is_said() -> None:
    told = explain(b"\x28\xb5\x2f\xfd rest", guest(CERTIFICATE))
    assert told.loads is None
    assert "zstd" in told.why
    assert told.description.verdict is None


def test_what_is_no_module_is_not_explained() -> None:
    with pytest.raises(ConfigError, match=r"notes\.txt: is not a kernel module"):
        explain(b"hello", guest(CERTIFICATE), name="notes.txt")
