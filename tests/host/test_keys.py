"""Test reading the user's key pairs, and storing the lab's own so that only the owner can read it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from kmlab.common.errors import ConfigError, LabError
from kmlab.host.key_files import PASSPHRASE, KeyPaths, find_saved_pair, find_system_pairs, load_pair, save_pair

NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a person's key")])
NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)
NOBODY: dict[str, str] = {}


def certificate_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> x509.Certificate:
    builder = x509.CertificateBuilder().subject_name(NAME).issuer_name(NAME).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(days=9)).not_valid_after(NOW + timedelta(days=9))
    return builder.sign(key, hashes.SHA256())


KEY = rsa.generate_private_key(65537, 2048)
CERTIFICATE = certificate_of(KEY)
FORMATS = [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL]


def write_key(
    path: Path,
    key: PrivateKeyTypes = KEY,
    encoding: Encoding = Encoding.PEM,
    form: PrivateFormat = PrivateFormat.PKCS8,
    encryption: KeySerializationEncryption | None = None,
) -> Path:
    path.write_bytes(key.private_bytes(encoding, form, encryption or NoEncryption()))
    path.chmod(0o600)
    return path


def write_certificate(path: Path, encoding: Encoding = Encoding.DER) -> Path:
    path.write_bytes(CERTIFICATE.public_bytes(encoding))
    return path


def encrypted(path: Path, encoding: Encoding = Encoding.PEM) -> Path:
    return write_key(path, encoding=encoding, encryption=BestAvailableEncryption(b"s3cret"))


@pytest.fixture
def open_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


# Reading


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("key_encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_pem_and_der_both_load(tmp_path: Path, form: PrivateFormat, key_encoding: Encoding, encoding: Encoding) -> None:
    key = write_key(tmp_path / "key", encoding=key_encoding, form=form)
    pair = load_pair(key, write_certificate(tmp_path / "cert", encoding), environ=NOBODY, now=NOW)
    assert pair.key.private_numbers() == KEY.private_numbers()
    assert pair.certificate == CERTIFICATE
    assert pair.notes == ()


@pytest.mark.parametrize("certificate_first", [False, True])
def test_key_and_certificate_may_share_a_file(tmp_path: Path, certificate_first: bool) -> None:
    parts = [write_key(tmp_path / "key").read_bytes(), CERTIFICATE.public_bytes(Encoding.PEM)]
    both = tmp_path / "signing_key.pem"
    both.write_bytes(b"".join(reversed(parts) if certificate_first else parts))
    both.chmod(0o600)
    assert load_pair(both, environ=NOBODY, now=NOW).certificate == CERTIFICATE


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_the_passphrase_of_the_environment_takes_precedence(tmp_path: Path, encoding: Encoding) -> None:
    questions = []

    def ask(path: str) -> str:
        questions.append(path)
        return "wrong"

    key, certificate = encrypted(tmp_path / "key", encoding), write_certificate(tmp_path / "cert")
    pair = load_pair(key, certificate, ask=ask, environ={PASSPHRASE: "s3cret"}, now=NOW)
    assert pair.key.private_numbers() == KEY.private_numbers()
    assert questions == []


def test_the_user_is_asked_for_the_passphrase_of_that_file(tmp_path: Path) -> None:
    answers = {str(tmp_path / "key"): "s3cret"}
    key, certificate = encrypted(tmp_path / "key"), write_certificate(tmp_path / "cert")
    assert load_pair(key, certificate, ask=answers.get, environ=NOBODY, now=NOW).certificate == CERTIFICATE


def test_an_unencrypted_key_asks_for_nothing_and_ignores_the_variable(tmp_path: Path) -> None:
    key, certificate = write_key(tmp_path / "key"), write_certificate(tmp_path / "cert")
    assert load_pair(key, certificate, environ={PASSPHRASE: "unneeded"}, now=NOW).notes == ()


@pytest.mark.parametrize("answer", [None, ""])
def test_an_encrypted_key_without_a_passphrase_names_the_variable(tmp_path: Path, answer: str | None) -> None:
    key, certificate = encrypted(tmp_path / "key"), write_certificate(tmp_path / "cert")
    with pytest.raises(ConfigError, match="the key is encrypted and there is no passphrase") as error:
        load_pair(key, certificate, ask=lambda _: answer, environ={PASSPHRASE: ""})
    assert PASSPHRASE in (error.value.hint or "")


def test_a_wrong_passphrase_is_reported_and_not_shown(tmp_path: Path) -> None:
    key, certificate = encrypted(tmp_path / "key"), write_certificate(tmp_path / "cert")
    with pytest.raises(ConfigError, match="does not open the key") as error:
        load_pair(key, certificate, environ={PASSPHRASE: "hunter2"})
    assert error.value.hint == f"it came from {PASSPHRASE}"
    assert "hunter2" not in error.value.message
    with pytest.raises(ConfigError, match="does not open the key"):
        load_pair(key, certificate, ask=lambda _: "hunter2", environ=NOBODY)


def test_a_certificate_of_another_key_is_refused(tmp_path: Path) -> None:
    key = write_key(tmp_path / "key", rsa.generate_private_key(65537, 2048))
    with pytest.raises(ConfigError, match="cert: this certificate does not belong to the key in "):
        load_pair(key, write_certificate(tmp_path / "cert"), environ=NOBODY)


def test_an_expired_certificate_is_a_note(tmp_path: Path) -> None:
    key, certificate = write_key(tmp_path / "key"), write_certificate(tmp_path / "cert")
    (note,) = load_pair(key, certificate, environ=NOBODY, now=NOW + timedelta(days=10)).notes
    assert "expired on 2026-06-10" in note
    assert "kernels still load modules that it signs" in note


def test_a_certificate_that_is_not_valid_yet_is_a_note(tmp_path: Path) -> None:
    key, certificate = write_key(tmp_path / "key"), write_certificate(tmp_path / "cert")
    (note,) = load_pair(key, certificate, environ=NOBODY, now=NOW - timedelta(days=10)).notes
    assert "valid only from 2026-05-23 on" in note


def test_a_key_that_others_can_read_is_a_note(tmp_path: Path) -> None:
    key, certificate = write_key(tmp_path / "key"), write_certificate(tmp_path / "cert")
    key.chmod(0o640)
    (note,) = load_pair(key, certificate, environ=NOBODY, now=NOW).notes
    assert note.endswith(f"chmod 600 {key}")


def test_an_ecdsa_key_is_refused_with_the_kernels_that_cannot_read_it(tmp_path: Path) -> None:
    key = write_key(tmp_path / "key", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(ConfigError, match=r"ECDSA key; kernels before 5\.13.*Debian 12's 6\.1"):
        load_pair(key, write_certificate(tmp_path / "cert"), environ=NOBODY)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (ed25519.Ed25519PrivateKey.generate(), "not an RSA key"),
        (rsa.generate_private_key(65537, 1024), "1024 bits"),
    ],
)
def test_a_key_that_kernels_cannot_verify_is_refused(tmp_path: Path, key: PrivateKeyTypes, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_pair(write_key(tmp_path / "key", key), write_certificate(tmp_path / "cert"), environ=NOBODY)


@pytest.mark.parametrize("content", [b"hello", b"\x30\x03\x02\x01", b"-----BEGIN PRIVATE KEY-----\nAAAA"])
def test_a_file_that_is_no_key_or_certificate_is_reported(tmp_path: Path, content: bytes) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(content)
    with pytest.raises(ConfigError, match="junk: not a private key"):
        load_pair(junk, write_certificate(tmp_path / "cert"), environ=NOBODY)
    with pytest.raises(ConfigError, match=r"junk: not an X\.509 certificate"):
        load_pair(write_key(tmp_path / "key"), junk, environ=NOBODY)


def test_swapped_files_are_recognised(tmp_path: Path) -> None:
    key, certificate = write_key(tmp_path / "key"), write_certificate(tmp_path / "cert", Encoding.PEM)
    with pytest.raises(ConfigError, match="cert: holds no private key"):
        load_pair(certificate, key, environ=NOBODY)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path / "cert")
    with pytest.raises(ConfigError, match="key: cannot read this key: No such file"):
        load_pair(tmp_path / "key", certificate, environ=NOBODY)
    with pytest.raises(ConfigError, match="cannot read this key: Is a directory"):
        load_pair(tmp_path, certificate, environ=NOBODY)
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigError, match="empty: not a certificate: empty"):
        load_pair(write_key(tmp_path / "key"), tmp_path / "empty", environ=NOBODY)


# Keeping


@pytest.mark.usefixtures("open_umask")
def test_only_the_owner_can_read_a_stored_pair_with_any_umask(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "keys" / "lab"
    paths = save_pair(KEY, CERTIFICATE, folder)
    assert stat.S_IMODE(paths.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_a_stored_pair_loads_again_without_a_note(tmp_path: Path) -> None:
    paths = save_pair(KEY, CERTIFICATE, tmp_path / "lab")
    assert find_saved_pair(tmp_path / "lab") == paths
    pair = load_pair(paths.key, paths.certificate, environ=NOBODY, now=NOW)
    assert pair.key.private_numbers() == KEY.private_numbers()
    assert pair.notes == ()
    assert paths.certificate.read_bytes() == CERTIFICATE.public_bytes(Encoding.DER)


def test_an_existing_pair_is_never_overwritten(tmp_path: Path) -> None:
    paths = save_pair(KEY, CERTIFICATE, tmp_path / "lab")
    before = paths.key.read_bytes()
    with pytest.raises(ConfigError, match="a key pair exists already"):
        save_pair(rsa.generate_private_key(65537, 2048), CERTIFICATE, tmp_path / "lab")
    assert paths.key.read_bytes() == before


def test_if_two_processes_store_a_pair_at_once_one_wins(tmp_path: Path) -> None:
    keys = [rsa.generate_private_key(65537, 2048) for _ in range(4)]

    def keep(key: rsa.RSAPrivateKey) -> bool:
        try:
            save_pair(key, certificate_of(key), tmp_path / "lab")
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor() as pool:
        assert sum(pool.map(keep, keys)) == 1
    load_pair(tmp_path / "lab" / "mok.key", tmp_path / "lab" / "mok.der", environ=NOBODY)
    assert [path.name for path in tmp_path.iterdir()] == ["lab"]


def test_nothing_is_left_if_a_pair_cannot_be_stored(tmp_path: Path) -> None:
    (tmp_path / "lab").write_text("a file")
    with pytest.raises(LabError, match="lab: cannot store the key pair: Not a directory"):
        save_pair(KEY, CERTIFICATE, tmp_path / "lab")
    assert [path.name for path in tmp_path.iterdir()] == ["lab"]


def test_a_folder_without_a_pair_has_none(tmp_path: Path) -> None:
    assert find_saved_pair(tmp_path / "nowhere") is None
    write_key(tmp_path / "mok.key")
    assert find_saved_pair(tmp_path) is None


def test_a_pair_does_not_print_its_key(tmp_path: Path) -> None:
    paths = save_pair(KEY, CERTIFICATE, tmp_path / "lab")
    assert repr(load_pair(paths.key, paths.certificate, environ=NOBODY)) == 'KeyPair("CN=a person\'s key")'


# Where people have one


def test_ubuntus_and_dkmss_pairs_are_found_if_both_halves_exist(tmp_path: Path) -> None:
    assert find_system_pairs(tmp_path) == []
    ubuntu, dkms = tmp_path / "var/lib/shim-signed/mok", tmp_path / "var/lib/dkms"
    for path in (ubuntu / "MOK.priv", ubuntu / "MOK.der", dkms / "mok.key"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find_system_pairs(tmp_path) == [KeyPaths(ubuntu / "MOK.priv", ubuntu / "MOK.der", "Ubuntu's", True)]
    (dkms / "mok.pub").touch()
    assert [paths.whose for paths in find_system_pairs(tmp_path)] == ["Ubuntu's", "DKMS"]
