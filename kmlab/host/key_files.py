"""The files of a key pair for signing modules: reading other people's, keeping the lab's own.

Follows Documentation/admin-guide/module-signing.rst for what a pair is, and mokutil(1), which takes DER.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from kmlab.common.errors import ConfigError, LabError
from kmlab.common.events import AskPassphrase
from kmlab.common.paths import make_folder

PASSPHRASE = "KMLAB_KEY_PASSPHRASE"
"""The environment variable that a key's passphrase is read from."""


KEY, CERTIFICATE = "mok.key", "mok.der"
"""The names of a lab's own pair in its folder."""
_USUAL = (
    (
        "Ubuntu's",
        "var/lib/shim-signed/mok/MOK.priv",
        "var/lib/shim-signed/mok/MOK.der",
    ),
    ("DKMS", "var/lib/dkms/mok.key", "var/lib/dkms/mok.pub"),
)
_USE_RSA = "use an RSA key of 2048 bits; `kmlab sign --mok` makes one"
_RSA_BITS = (2048, 3072, 4096)
_PEM = b"-----BEGIN "
_LARGEST = 2**20


class KeyPaths(NamedTuple):
    """Where a key pair lies."""

    key: Path
    certificate: Path
    whose: str
    readable: bool
    """Whether this person may read the key; the usual ones are root's."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key that kernels can verify, and its certificate."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate
    notes: tuple[str, ...] = ()
    """What a person should know of it: expired, readable by others."""

    @property
    def der(self) -> bytes:
        """The certificate, as mokutil and the firmware want it."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def __repr__(self) -> str:
        return f"KeyPair({self.certificate.subject.rfc4514_string()!r})"


def load_pair(
    key: Path,
    certificate: Path | None = None,
    ask: AskPassphrase | None = None,
    environ: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> KeyPair:
    """Read a pair in PEM or DER; without `certificate`, it stands in the key's file (as in signing_key.pem).

    The passphrase of an encrypted key comes from KMLAB_KEY_PASSPHRASE, else from `ask`.
    """
    private = _rsa(key, _private(key, ask, os.environ if environ is None else environ))
    place = certificate or key
    public = load_certificate(place)
    if _public_key(place, public) != private.public_key():
        raise ConfigError(
            f"{place}: this certificate does not belong to the key in {key}",
            "give the certificate that was made with this key",
        )
    return KeyPair(private, public, tuple(_notes(key, place, public, now or datetime.now(timezone.utc))))


def save_pair(key: rsa.RSAPrivateKey, certificate: x509.Certificate, folder: Path) -> KeyPaths:
    """Keep a new pair in `folder`, which is the pair's own (0700); the key is 0600 from its first byte.

    Both files appear at once, by renaming a folder. ConfigError if there is a pair: it may be enrolled.
    """
    return _keep(certificate, folder, lambda place: _write(place, _pem(key), 0o600))


def link_pair(key: Path, certificate: x509.Certificate, folder: Path) -> KeyPaths:
    """As `save_pair`, for a key that stays where it is: `folder` gets a symbolic link to it, and the certificate."""
    return _keep(certificate, folder, lambda place: place.symlink_to(key.resolve()))


def _keep(certificate: x509.Certificate, folder: Path, put_key: Callable[[Path], None]) -> KeyPaths:
    make_folder(folder.parent, 0o700)
    try:
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            put_key(scratch / KEY)
            _write(scratch / CERTIFICATE, certificate.public_bytes(serialization.Encoding.DER), 0o644)
            _publish(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise LabError(f"{folder}: cannot keep the key pair: {error.strerror}") from error
    return KeyPaths(folder / KEY, folder / CERTIFICATE, "this lab's", True)


def saved_in(folder: Path) -> KeyPaths | None:
    """The pair that `save_pair` has put there, if any."""
    return _existing("this lab's", folder / KEY, folder / CERTIFICATE)


def usual_places(root: Path = Path("/")) -> list[KeyPaths]:
    """The pairs that distributions and DKMS make for their owner and that exist here."""
    found = (_existing(whose, root / key, root / certificate) for whose, key, certificate in _USUAL)
    return [paths for paths in found if paths]


def _existing(whose: str, key: Path, certificate: Path) -> KeyPaths | None:
    # os.path.exists, not Path.exists: the latter raises for a folder that one may not look into.
    if not (os.path.exists(key) and os.path.exists(certificate)):
        return None
    return KeyPaths(key, certificate, whose, os.access(key, os.R_OK))


def _private(path: Path, ask: AskPassphrase | None, environ: Mapping[str, str]) -> PrivateKeyTypes:
    encoded = _read(path, "key")
    try:
        return _decode(encoded, None)
    except TypeError:
        pass  # this is how cryptography says "encrypted"
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, encoded) from error
    passphrase, source = _passphrase(path, ask, environ)
    try:
        return _decode(encoded, passphrase.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path}: this passphrase does not open the key",
            f"it came from {source}" if source else "try again",
        ) from error


def _passphrase(path: Path, ask: AskPassphrase | None, environ: Mapping[str, str]) -> tuple[str, str]:
    """The passphrase, and the variable that it came from if it did."""
    if environ.get(PASSPHRASE):
        return environ[PASSPHRASE], PASSPHRASE
    answer = ask(str(path)) if ask else None
    if not answer:
        raise ConfigError(
            f"{path}: the key is encrypted and there is no passphrase",
            f"run kmlab in a terminal to be asked for it, or set {PASSPHRASE}",
        )
    return answer, ""


def _decode(encoded: bytes, passphrase: bytes | None) -> PrivateKeyTypes:
    if _PEM in encoded:
        return serialization.load_pem_private_key(encoded, passphrase)
    return serialization.load_der_private_key(encoded, passphrase)


def _no_key(path: Path, encoded: bytes) -> ConfigError:
    if b"BEGIN CERTIFICATE" in encoded or b"BEGIN PUBLIC KEY" in encoded:
        return ConfigError(f"{path}: holds no private key", "--key takes the private key, --cert the certificate")
    return ConfigError(f"{path}: not a private key in PEM or DER", "give an RSA private key as openssl writes it")


def _rsa(path: Path, key: PrivateKeyTypes) -> rsa.RSAPrivateKey:
    """The key, if the kernels of this lab can verify what it signs."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{path}: an ECDSA key; kernels before 5.13, and later ones built without CONFIG_CRYPTO_ECDSA=y"
            " such as Debian 12's 6.1, cannot read its certificate",
            _USE_RSA,
        )
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigError(f"{path}: not an RSA key; kernels verify no other", _USE_RSA)
    if key.key_size not in _RSA_BITS:
        sizes = ", ".join(map(str, _RSA_BITS))
        raise ConfigError(f"{path}: an RSA key of {key.key_size} bits; kernels take {sizes}", _USE_RSA)
    return key


def load_certificate(path: Path) -> x509.Certificate:
    """A certificate in PEM or DER."""
    encoded = _read(path, "certificate")
    try:
        if _PEM in encoded:
            return x509.load_pem_x509_certificate(encoded)
        return x509.load_der_x509_certificate(encoded)
    except ValueError as error:
        raise ConfigError(
            f"{path}: not an X.509 certificate in PEM or DER",
            "--cert takes the certificate that belongs to the key",
        ) from error


def _public_key(path: Path, certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: a certificate for a kind of key that is not known", _USE_RSA) from error


def _notes(key: Path, place: Path, certificate: x509.Certificate, now: datetime) -> list[str]:
    notes = []
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end < now:
        notes.append(
            f"{place}: this certificate expired on {end:%Y-%m-%d}; kernels load what it signs all the same,"
            " other tools may not"
        )
    elif begin > now:
        notes.append(f"{place}: this certificate is valid only from {begin:%Y-%m-%d} on; is the clock right?")
    with contextlib.suppress(OSError):
        if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            notes.append(f"{key}: others than its owner may use this private key: chmod 600 {key}")
    return notes


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except PermissionError as error:
        raise ConfigError(
            f"{path}: not allowed to read this {what}",
            "it belongs to another user, perhaps root: copy it or use sudo",
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this {what}: {error.strerror}", "check the path") from error
    if not content or len(content) > _LARGEST:
        raise ConfigError(f"{path}: not a {what}: {'empty' if not content else 'far too large'}", "check the path")
    return content


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _publish(scratch: Path, folder: Path) -> None:
    """Rename, which the kernel refuses if `folder` is there and holds anything (rename(2))."""
    try:
        scratch.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise
        raise ConfigError(
            f"{folder}: there is a key pair already, and guests may have it enrolled",
            "use it, or remove the folder to have a new one made and enrolled",
        ) from error
