"""Read key pairs for signing modules, and store the lab's own pair.

Follows Documentation/admin-guide/module-signing.rst for the content of a pair, and mokutil(1), which needs DER.
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
"""The environment variable with the passphrase of a key."""


KEY, CERTIFICATE = "mok.key", "mok.der"
"""The file names of the lab's own pair."""
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
    """The files of a key pair."""

    key: Path
    certificate: Path
    whose: str
    readable: bool
    """Whether this user may read the key. Those of the distribution belong to root."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key that kernels can verify, and its certificate."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate
    notes: tuple[str, ...] = ()
    """Warnings for the user: the certificate has expired, or others can read the key."""

    @property
    def der(self) -> bytes:
        """Return the certificate in DER, as mokutil and the firmware need it."""
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
    """Read a pair in PEM or DER. Without `certificate`, read it from the key's file (as in signing_key.pem).

    The passphrase of an encrypted key comes from KMLAB_KEY_PASSPHRASE, else from `ask`. Raise ConfigError for an
    unusable pair.
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
    """Store a new pair in `folder` (0700), which holds nothing else. The key has mode 0600 from its first byte.

    Both files appear at once, by renaming a folder. Raise ConfigError if there is a pair: it may be enrolled.
    """
    return _store(certificate, folder, lambda place: _write(place, _pem(key), 0o600))


def link_pair(key: Path, certificate: x509.Certificate, folder: Path) -> KeyPaths:
    """Store the certificate and a symbolic link to the key in `folder`. Otherwise the same as `save_pair`."""
    return _store(certificate, folder, lambda place: place.symlink_to(key.resolve()))


def _store(certificate: x509.Certificate, folder: Path, put_key: Callable[[Path], None]) -> KeyPaths:
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
        raise LabError(f"{folder}: cannot store the key pair: {error.strerror}") from error
    return KeyPaths(folder / KEY, folder / CERTIFICATE, "this lab's", True)


def find_saved_pair(folder: Path) -> KeyPaths | None:
    """Return the pair that `save_pair` stored in `folder`; None if there is none."""
    return _existing("this lab's", folder / KEY, folder / CERTIFICATE)


def find_system_pairs(root: Path = Path("/")) -> list[KeyPaths]:
    """Return the existing pairs that Ubuntu and DKMS create."""
    candidates = (_existing(whose, root / key, root / certificate) for whose, key, certificate in _USUAL)
    return [paths for paths in candidates if paths]


def _existing(whose: str, key: Path, certificate: Path) -> KeyPaths | None:
    # os.path.exists, not Path.exists: the latter raises for a folder without permission.
    if not (os.path.exists(key) and os.path.exists(certificate)):
        return None
    return KeyPaths(key, certificate, whose, os.access(key, os.R_OK))


def _private(path: Path, ask: AskPassphrase | None, environ: Mapping[str, str]) -> PrivateKeyTypes:
    encoded = _read(path, "key")
    try:
        return _decode(encoded, None)
    except TypeError:
        pass  # cryptography raises TypeError for an encrypted key
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
    """Return the passphrase, and the name of its environment variable, or '' if the user typed it."""
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
    """Return the key. Raise ConfigError if the lab's kernels cannot verify its signatures."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{path}: an ECDSA key; kernels before 5.13, and later ones built without CONFIG_CRYPTO_ECDSA=y"
            " such as Debian 12's 6.1, cannot read its certificate",
            _USE_RSA,
        )
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigError(f"{path}: not an RSA key; kernels verify only RSA signatures", _USE_RSA)
    if key.key_size not in _RSA_BITS:
        sizes = ", ".join(map(str, _RSA_BITS))
        raise ConfigError(f"{path}: an RSA key of {key.key_size} bits; kernels accept {sizes}", _USE_RSA)
    return key


def load_certificate(path: Path) -> x509.Certificate:
    """Read a certificate in PEM or DER. Raise ConfigError if it is not one."""
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
        raise ConfigError(f"{path}: a certificate for an unsupported kind of key", _USE_RSA) from error


def _notes(key: Path, place: Path, certificate: x509.Certificate, now: datetime) -> list[str]:
    notes = []
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end < now:
        notes.append(
            f"{place}: this certificate expired on {end:%Y-%m-%d}; kernels still load modules that it signs,"
            " other tools may not"
        )
    elif begin > now:
        notes.append(f"{place}: this certificate is valid only from {begin:%Y-%m-%d} on; is the clock right?")
    with contextlib.suppress(OSError):
        if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            notes.append(f"{key}: other users can read this private key: chmod 600 {key}")
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
    """Rename the folder. The kernel refuses this if `folder` exists and is not empty (rename(2))."""
    try:
        scratch.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise
        raise ConfigError(
            f"{folder}: a key pair exists already, and may be enrolled in guests",
            "use it, or remove the folder to create and enrol a new one",
        ) from error
