"""Signing modules, and making the key for it: bytes in, bytes out.

Follows scripts/sign-file.c and Documentation/admin-guide/module-signing.rst.
Reading signatures is in `signature`, judging them for a guest in `explain`.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kmlab.common.errors import ConfigError
from kmlab.kernel.module.modinfo import parse_modinfo
from kmlab.kernel.signing.key_ids import kernel_name
from kmlab.kernel.signing.signature import MAGIC, PKCS7, TRAILER, strip_signature
from kmlab.kernel.symbols.elf import find_compression

MODULES_ONLY = x509.ObjectIdentifier("1.3.6.1.4.1.2312.16.1.2")
"""With this key usage, shim takes no boot loader of the key: a leaked one signs modules and no more."""

KERNEL_RSA_BITS = (2048, 3072, 4096)
"""Other lengths the kernel's RSA refuses, or refuses in FIPS mode (crypto/rsa.c, rsa_check_key_length)."""

ECDSA_REFUSED = (
    "kernels before 5.13, and later ones built without CONFIG_CRYPTO_ECDSA=y such as Debian 12's 6.1, cannot read it"
)

_UNPACK = {"xz": "xz --decompress --keep", "zstd": "zstd --decompress --keep", "gzip": "gunzip --keep"}
_REPACK = {"xz": "xz --check=crc32 --lzma2=dict=1MiB", "zstd": "zstd", "gzip": "gzip"}
"""xz with the options that the kernel's own decompressor can read (Documentation/staging/xz.rst)."""
_USE_RSA = "use an RSA key of 2048 bits; `kmlab sign --mok` makes one"
_KEY_BITS = 2048
_EXPONENT = 65537
_LONGEST_NAME = 64
_YEARS = 10
_OPTIONS = [
    pkcs7.PKCS7Options.Binary,
    pkcs7.PKCS7Options.DetachedSignature,
    pkcs7.PKCS7Options.NoAttributes,
    pkcs7.PKCS7Options.NoCerts,
]


def make_key_pair(common_name: str, now: datetime | None = None) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    """Make a new RSA-2048 key and its certificate: valid ten years, for modules and not for boot loaders."""
    if not 0 < len(common_name) <= _LONGEST_NAME:
        raise ConfigError(
            f"a key's name must have 1 to {_LONGEST_NAME} characters, not {len(common_name)}",
            "choose another name",
        )
    begin = (now or datetime.now(timezone.utc)).replace(microsecond=0) - timedelta(days=1)
    key = rsa.generate_private_key(public_exponent=_EXPONENT, key_size=_KEY_BITS)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    subject_key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=1 + 365 * _YEARS + _YEARS // 4))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_for_signatures(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING, MODULES_ONLY]), critical=False)
        .add_extension(subject_key_id, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key_id), critical=False)
    )
    return key, builder.sign(key, hashes.SHA256())


def sign_module(
    ko: bytes,
    key: PrivateKeyTypes,
    certificate: x509.Certificate,
    *,
    name: str = "the module",
    arch: str | None = None,
) -> bytes:
    """Sign the module with this key; remove the signature that it had.

    ConfigError if it is no module, is compressed, or is not for `arch` (as `uname -m`).
    """
    how = find_compression(ko)
    if how:
        raise ConfigError(
            f"{name}: is compressed ({how}); a module is signed first and compressed after",
            f"{_UNPACK[how]} FILE, sign the .ko, then {_REPACK[how]} it again",
        )
    module = parse_modinfo(ko, name)
    if arch and module.machine != arch:
        raise ConfigError(
            f"{name}: built for {module.machine}, not for {arch}",
            f"build it against the headers of an {arch} kernel",
        )
    signer = _usable(key, certificate)
    content = strip_signature(ko)
    signature = (
        pkcs7.PKCS7SignatureBuilder()
        .set_data(content)
        .add_signer(certificate, signer, hashes.SHA256())
        .sign(serialization.Encoding.DER, _OPTIONS)
    )
    return content + signature + TRAILER.pack(0, 0, PKCS7, 0, 0, bytes(3), len(signature)) + MAGIC


def _usable(key: PrivateKeyTypes, certificate: x509.Certificate) -> rsa.RSAPrivateKey:
    """Return the key, if kernels can verify what it signs and it is the certificate's."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"this key is an ECDSA key: {ECDSA_REFUSED}", _USE_RSA)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigError("this key is not an RSA key; kernels verify no other", _USE_RSA)
    if key.key_size not in KERNEL_RSA_BITS:
        raise ConfigError(
            f"this RSA key has {key.key_size} bits; kernels take {', '.join(map(str, KERNEL_RSA_BITS))}",
            _USE_RSA,
        )
    if certificate.public_key() != key.public_key():
        raise ConfigError(
            f"the certificate of '{kernel_name(certificate)}' does not belong to this key",
            "give the certificate that was made with the key",
        )
    return key


def _for_signatures() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
