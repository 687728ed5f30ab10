"""`kmlab sign` as a person calls it: keys made and taken over, files signed and explained, bad input refused."""

from __future__ import annotations

import gzip
import json
import shutil
import stat
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from kmlab.kernel.signing.pkcs7 import make_key_pair
from kmlab.kernel.signing.signature import MAGIC, Verdict, verify
from tests.places import TEST_DATA
from tests.program import Ended, Program

KO = TEST_DATA / "ko" / "frames.ko"
LAB = """\
name: t
guests:
  plain: {image: debian-12}
  secure: {image: debian-12, secure_boot: true}
"""
KEY, CERTIFICATE = make_key_pair("mine")


@pytest.fixture
def folder(xdg: Path) -> Path:
    """A lab's folder with a module in it."""
    made = xdg / "lab"
    made.mkdir()
    (made / "lab.yaml").write_text(LAB)
    shutil.copy(KO, made / "frames.ko")
    return made


@pytest.fixture
def sign(folder: Path) -> Program:
    return Program(folder, ("sign",))


def keys(folder: Path) -> Path:
    (found,) = (folder.parent / "state" / "kmlab" / "keys").glob("t-??????")
    return found


def lab_certificate(folder: Path) -> x509.Certificate:
    return x509.load_der_x509_certificate((keys(folder) / "mok.der").read_bytes())


def write_pair(
    at: Path,
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = KEY,
    certificate: x509.Certificate = CERTIFICATE,
    encryption: KeySerializationEncryption | None = None,
) -> tuple[str, str]:
    (at / "my.priv").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    (at / "my.priv").chmod(0o600)
    (at / "my.der").write_bytes(certificate.public_bytes(Encoding.DER))
    return str(at / "my.priv"), str(at / "my.der")


def certificate_of(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, end: datetime | None = None
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "of my own")])
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(5).not_valid_before(now - timedelta(days=99)).not_valid_after(end or now + timedelta(9))
    )
    return builder.sign(key, hashes.SHA256())


# --- the lab's key -------------------------------------------------------------------------------------------------


def test_the_lab_s_key_is_made_once_and_each_guest_with_secure_boot_is_told_of(sign: Program, folder: Path) -> None:
    first = sign("--mok")
    assert first.code == 0
    assert "made the lab's key: " in first.out
    assert "  secure: the key is enrolled at its first start" in first.out
    assert "plain" not in first.out
    assert stat.S_IMODE((keys(folder) / "mok.key").stat().st_mode) == 0o600
    before = (keys(folder) / "mok.key").read_bytes()
    again = json.loads(sign("--mok", "--json").out)
    assert (keys(folder) / "mok.key").read_bytes() == before
    assert again["notes"] == []
    assert again["key"]["name"].startswith("kmlab t 20")
    assert [guest["guest"] for guest in again["guests"]] == ["secure"]


def test_files_are_signed_in_place_with_the_lab_s_key_and_keep_their_mode(sign: Program, folder: Path) -> None:
    (folder / "frames.ko").chmod(0o640)
    ended = sign("frames.ko")
    assert ended.code == 0, ended.err
    assert verify((folder / "frames.ko").read_bytes(), lab_certificate(folder)) is Verdict.VALID
    assert stat.S_IMODE((folder / "frames.ko").stat().st_mode) == 0o640


def test_a_signature_is_replaced_and_not_doubled(sign: Program, folder: Path) -> None:
    key, certificate = write_pair(folder)
    sign("frames.ko", "--key", key, "--cert", certificate)
    told = json.loads(sign("frames.ko", "--json").out)
    assert told["signed"] == [{"file": "frames.ko", "replaced": "mine"}]
    content = (folder / "frames.ko").read_bytes()
    assert content.count(MAGIC) == 1
    assert verify(content, lab_certificate(folder)) is Verdict.VALID


def test_with_a_key_of_one_s_own_no_lab_is_needed(sign: Program, folder: Path, tmp_path: Path) -> None:
    key, _ = write_pair(tmp_path)
    shutil.copy(KO, tmp_path)
    assert sign("frames.ko", "--key", key, at=tmp_path).code == 0, "the certificate is found beside the key"
    assert verify((tmp_path / "frames.ko").read_bytes(), CERTIFICATE) is Verdict.VALID
    assert not (folder.parent / "state" / "kmlab" / "keys").exists()


def test_with_mok_a_key_of_one_s_own_becomes_the_lab_s(sign: Program, folder: Path, tmp_path: Path) -> None:
    sign("--mok")
    key, _ = write_pair(tmp_path)
    ended = sign("--mok", "--key", key)
    assert "the lab's previous key is kept in" in ended.out
    assert sign("frames.ko").code == 0
    assert verify((folder / "frames.ko").read_bytes(), CERTIFICATE) is Verdict.VALID
    assert not [
        path
        for path in (folder.parent / "state").rglob("*")
        if path.is_file() and not path.is_symlink() and path.name == "mok.key" and path.parent == keys_now(folder)
    ]


def keys_now(folder: Path) -> Path:
    return next(p for p in (folder.parent / "state/kmlab/keys").iterdir() if ".before-" not in p.name and p.is_dir())


# --- explaining ----------------------------------------------------------------------------------------------------


def test_explain_says_for_each_guest_whether_it_would_load_and_starts_nothing(sign: Program, folder: Path) -> None:
    unsigned = sign("--explain", "frames.ko")
    assert unsigned.code == 0
    assert "  plain: loads: it is not signed" in unsigned.out
    assert "  secure: does NOT load: it is not signed. What to do: sign it: kmlab sign FILE.ko." in unsigned.out
    sign("frames.ko")
    told = json.loads(sign("--explain", "frames.ko", "--json").out)["files"][0]
    assert (told["verdict"], told["digest"], told["module"]) == ("valid", "sha256", "frames")
    assert {g["guest"]: g["loads"] for g in told["guests"]} == {"plain": True, "secure": True}
    assert not (folder.parent / "cache").exists() or not list((folder.parent / "cache").rglob("*.qcow2"))


def test_explain_needs_no_lab(sign: Program, tmp_path: Path) -> None:
    shutil.copy(KO, tmp_path)
    key, certificate = write_pair(tmp_path)
    sign("frames.ko", "--key", key, at=tmp_path)
    assert "not checked" in sign("--explain", "frames.ko", at=tmp_path).out
    assert "and the signature is valid" in sign("--explain", "frames.ko", "--cert", certificate, at=tmp_path).out


def test_explain_tells_altered_stripped_and_compressed_apart(sign: Program, folder: Path) -> None:
    sign("frames.ko")
    signed = (folder / "frames.ko").read_bytes()
    at = signed.index(b"license=")
    (folder / "altered.ko").write_bytes(signed[:at] + b"License=" + signed[at + 8 :])
    assert "altered after" in sign("--explain", "altered.ko").out
    (folder / "packed.ko.gz").write_bytes(gzip.compress(signed))
    assert "compressed with g" in sign("--explain", "packed.ko.gz").out
    subprocess.run(["strip", "--strip-debug", folder / "frames.ko"], check=True)
    assert "its signature was stripped off" in sign("--explain", "frames.ko").out


# --- bad input -----------------------------------------------------------------------------------------------------


def refused(ended: Ended) -> str:
    """The one clear line; the hint is a second one."""
    assert ended.code == 2, ended
    lines = ended.err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("kmlab: ") and lines[1].startswith("  hint: "), ended.err
    return lines[0]


def test_what_is_no_module_is_refused_and_nothing_else_of_the_call_is_signed(sign: Program, folder: Path) -> None:
    before = (folder / "frames.ko").read_bytes()
    (folder / "text.ko").write_text("hello\n")
    assert "text.ko: " in refused(sign("frames.ko", "text.ko"))
    assert (folder / "frames.ko").read_bytes() == before
    assert "absent.ko: cannot read" in refused(sign("absent.ko"))
    assert "is a folder" in refused(sign("."))


def test_a_module_of_another_machine_is_refused(sign: Program, folder: Path) -> None:
    content = KO.read_bytes()
    (folder / "power.ko").write_bytes(content[:18] + (21).to_bytes(2, "little") + content[20:])
    assert "another machine" in refused(sign("power.ko"))


def test_a_compressed_module_is_refused(sign: Program, folder: Path) -> None:
    (folder / "frames.ko.gz").write_bytes(gzip.compress(KO.read_bytes()))
    ended = sign("frames.ko.gz")
    assert "compressed" in refused(ended)
    assert "gunzip" in ended.err


def test_an_encrypted_key_takes_its_passphrase_from_the_environment_or_is_refused(sign: Program, folder: Path) -> None:
    key, _ = write_pair(folder, encryption=BestAvailableEncryption(b"open sesame"))
    assert "encrypted and there is no passphrase" in refused(sign("frames.ko", "--key", key))
    assert "does not open the key" in refused(sign("frames.ko", "--key", key, KMLAB_KEY_PASSPHRASE="wrong"))
    assert sign("frames.ko", "--key", key, KMLAB_KEY_PASSPHRASE="open sesame").code == 0


@pytest.mark.parametrize(("answer", "code"), [("open sesame", 0), ("open barley", 2), ("\x03", 130)])
def test_a_passphrase_is_typed_at_the_terminal_and_never_shown(
    sign: Program, folder: Path, answer: str, code: int
) -> None:
    key, certificate = write_pair(folder, encryption=BestAvailableEncryption(b"open sesame"))
    ended, shown = sign.typed("frames.ko", "--key", key, question="Passphrase of ", answer=answer)
    assert ended == code, shown
    assert f"Passphrase of {key}" in shown and "open" not in shown.replace("does not open the key", "")
    signed = verify((folder / "frames.ko").read_bytes(), x509.load_der_x509_certificate(Path(certificate).read_bytes()))
    assert (signed is Verdict.VALID) == (code == 0)


def test_an_ecdsa_key_is_refused_and_the_kernels_that_cannot_read_it_are_named(sign: Program, folder: Path) -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    key, _ = write_pair(folder, own, certificate_of(own))
    line = refused(sign("frames.ko", "--key", key))
    assert "ECDSA" in line and "before 5.13" in line and "Debian 12's 6.1" in line


def test_a_certificate_of_another_key_is_refused(sign: Program, folder: Path) -> None:
    key, _ = write_pair(folder, KEY, make_key_pair("other")[1])
    assert "does not belong to the key" in refused(sign("--mok", "--key", key))
    assert not list((folder.parent / "state").rglob("mok.key"))


def test_an_expired_certificate_is_warned_of_and_works(sign: Program, folder: Path) -> None:
    key, _ = write_pair(folder, KEY, certificate_of(KEY, datetime.now(timezone.utc) - timedelta(days=1)))
    ended = sign("frames.ko", "--key", key)
    assert ended.code == 0
    assert "expired on" in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no file to sign"),
        (["frames.ko", "--cert", "my.der"], "--cert needs its key"),
        (["--explain", "--mok"], "--explain signs nothing"),
        (["--via-mokmanager", "--guest", "secure", "frames.ko"], "--via-mokmanager needs --mok and --guest"),
        (["--mok", "--via-mokmanager", "--guest", "plain"], "has no Secure Boot"),
        (["--mok", "--guest", "absent"], "no guest"),
    ],
)
def test_options_that_do_not_go_together_are_said(sign: Program, words: list[str], said: str) -> None:
    assert said in refused(sign(*words))


def test_without_a_lab_and_without_a_key_nothing_is_signed(sign: Program, tmp_path: Path) -> None:
    shutil.copy(KO, tmp_path)
    ended = sign("frames.ko", at=tmp_path)
    assert "no lab.yaml here" in refused(ended)
    assert "--key K" in ended.err


def test_a_run_is_signed_or_not(folder: Path) -> None:
    argv = [sys.executable, "-m", "kmlab", "run", ".", "--no-sign", "--sign-with", "wrong-key"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert "exclude each other" in refused(Ended(done.returncode, done.stdout, done.stderr))
