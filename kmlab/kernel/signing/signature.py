"""The signature at the end of a module file: taking it apart, taking it off, checking it.

Follows include/linux/module_signature.h, crypto/asymmetric_keys/pkcs7_parser.c and RFC 5652, and
Documentation/admin-guide/module-signing.rst.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509 import Certificate

from kmlab.kernel.signing import der
from kmlab.kernel.signing.key_ids import Issuer, common_name, issuer_of, key_id
from kmlab.kernel.symbols.elf import SIGNATURE_MAGIC, MalformedModule

MAGIC = SIGNATURE_MAGIC
TRAILER = struct.Struct(">BBBBB3sI")
"""struct module_signature: algo, hash, id_type, signer_len, key_id_len, padding, sig_len."""
PKCS7 = 2

_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
_DATA = bytes.fromhex("2a864886f70d010701")
_DIGESTS: dict[bytes, hashes.HashAlgorithm] = {
    bytes.fromhex("2b0e03021a"): hashes.SHA1(),
    bytes.fromhex("608648016503040201"): hashes.SHA256(),
    bytes.fromhex("608648016503040202"): hashes.SHA384(),
    bytes.fromhex("608648016503040203"): hashes.SHA512(),
    bytes.fromhex("608648016503040204"): hashes.SHA224(),
    bytes.fromhex("608648016503040208"): hashes.SHA3_256(),
    bytes.fromhex("608648016503040209"): hashes.SHA3_384(),
    bytes.fromhex("60864801650304020a"): hashes.SHA3_512(),
}
_BY_NAME = {digest.name: digest for digest in _DIGESTS.values()}
_RSA = bytes.fromhex("2a864886f70d0101")
_ECDSA = bytes.fromhex("2a8648ce3d04")
_NULLS = bytes(3)
_LARGEST = 1 << 16
"""Bytes of a signature that is looked into; one by an RSA key of 4096 bits has some 700."""


class Verdict(enum.Enum):
    """What a signature is worth against one certificate."""

    VALID = "valid"
    ALTERED = "altered"
    """Signed by that key by name, but the module or the signature was changed afterwards."""
    WRONG_KEY = "wrong-key"
    UNSIGNED = "unsigned"
    MALFORMED = "malformed"
    """There is a signature, of a form that kernels refuse whatever the key."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Who signed a module, how, and with what; only `problem` is meaningful if that is set."""

    signer: str = ""
    """The common name of the certificate's issuer, as `modinfo` prints it; empty if there is a key id."""
    serial: str = ""
    """The certificate's serial number in lower-case hex; `modinfo` prints it, with colons, as sig_key."""
    key_id: str = ""
    """The subject key id in lower-case hex, of a signature that names its key so (`sign-file -k`)."""
    digest: str = ""
    """As the kernel calls it: sha256."""
    algorithm: str = ""
    """rsa, ecdsa, or the object identifier in hex."""
    value: bytes = b""
    issuer: bytes = b""
    """The issuer's name, encoded."""
    problem: str | None = None
    """Why no kernel can read it, in words that follow "the signature"."""

    @property
    def well_formed(self) -> bool:
        return self.problem is None


def read_signature(ko: bytes) -> Signature | None:
    """Return the signature appended to a module, None if there is none; of several signers, the first."""
    if not ko.endswith(MAGIC):
        return None
    size, problem = _appended(ko, len(ko))
    if problem:
        return Signature(problem=problem)
    if size > _LARGEST:
        return Signature(problem=f"claims a length that no signature has ({size} bytes)")
    end = len(ko) - len(MAGIC) - TRAILER.size
    try:
        return _parse(ko[end - size : end])
    except der.DerError as error:
        return Signature(problem=f"is not a PKCS#7 message ({error})")


def strip_signature(ko: bytes) -> bytes:
    """Return the module without its signature, or without all of them if it was signed more than once.

    Raises MalformedModule where a signature does not say how long it is.
    """
    end = len(ko)
    while ko.endswith(MAGIC, 0, end):
        size, problem = _appended(ko, end)
        if problem and not size:
            raise MalformedModule(
                f"the module's signature {problem}, so it cannot be told where the module ends",
                "build it again",
            )
        end -= len(MAGIC) + TRAILER.size + size
    return ko[:end]


def verify(ko: bytes, certificate: Certificate) -> Verdict:
    """Return what the module's signature is worth to somebody who trusts this certificate."""
    signature = read_signature(ko)
    if signature is None:
        return Verdict.UNSIGNED
    if not signature.well_formed:
        return Verdict.MALFORMED
    if not names(signature, certificate):
        return Verdict.WRONG_KEY
    return _check(signature, signed_content(ko), certificate)


def names(signature: Signature, certificate: Certificate) -> bool:
    """Whether the signature names this certificate's key; the kernel tries no other."""
    if signature.key_id:
        return signature.key_id == key_id(certificate)
    return Issuer(signature.issuer, signature.serial) == issuer_of(certificate)


def signed_content(ko: bytes) -> bytes:
    """Return the bytes that the outermost signature is about."""
    return ko[: len(ko) - len(MAGIC) - TRAILER.size - _appended(ko, len(ko))[0]]


def _appended(ko: bytes, ends: int) -> tuple[int, str | None]:
    """Return the length of the signature that ends before `ends`, and what is wrong with the block that says it.

    The length is 0 if it is unknown.
    """
    end = ends - len(MAGIC) - TRAILER.size
    if end < 0:
        return 0, "is cut short"
    algo, digest, id_type, signer, key, pad, size = TRAILER.unpack_from(ko, end)
    if not 0 < size < end:
        return 0, f"claims an impossible length ({size} bytes)"
    if id_type != PKCS7:
        return size, "is of a kind that kernels since 4.3 do not read"
    if algo or digest or signer or key or pad != _NULLS:
        return size, "has an information block with fields that must be zero and are not"
    return size, None


def _parse(message: bytes) -> Signature:
    """Make a PKCS#7 SignedData message without content, certificates or attributes."""
    match der.only(message, der.SEQUENCE):
        case [kind, content] if kind.value == _SIGNED_DATA:
            fields = der.only(content.value, der.SEQUENCE)
        case _:
            raise der.DerError("it is of another content type")
    match fields:
        case [_, _, enclosed, *_, signers]:
            about = der.inside(enclosed, der.SEQUENCE)
            signed_by = der.inside(signers, der.SET)
        case _:
            raise der.DerError("a part is missing")
    if not about or not signed_by:
        raise der.DerError("a part is missing")
    signature = _signer(der.inside(signed_by[0], der.SEQUENCE))
    if about[0].value != _DATA:
        return replace(signature, problem="is about something else than plain data")
    if about[1:]:
        return replace(signature, problem="carries its own copy of the data instead of being detached")
    return signature


def _signer(fields: list[der.Element]) -> Signature:
    """SignerInfo: version, key, digest, [0] signed attributes, algorithm, signature, [1] other attributes."""
    match [field for field in fields if field.tag not in (der.context(0), der.context(1))]:
        case [_, key, digest, algorithm, value]:
            signature = Signature(
                digest=_digest(_identifier(digest)),
                algorithm=_algorithm(_identifier(algorithm)),
                value=der.expect(value, der.OCTET_STRING).value,
            )
        case _:
            raise der.DerError("the signer's part has another number of fields")
    signature = _named(signature, key)
    if any(field.tag == der.context(0) for field in fields):
        # "Invalid module sig (has authattrs)" in crypto/asymmetric_keys/pkcs7_verify.c: `openssl cms -sign`
        # adds them unless told -noattr.
        return replace(signature, problem="carries signed attributes, which kernels refuse for a module")
    if signature.digest not in _BY_NAME:
        return replace(signature, problem=f"uses a digest that is not known here ({signature.digest})")
    return signature


def _named(signature: Signature, key: der.Element) -> Signature:
    """With how it names its key: by the certificate's issuer and serial number, or by the subject key id."""
    if key.tag == der.context(0, constructed=False):
        return replace(signature, key_id=key.value.hex())
    match der.inside(key, der.SEQUENCE):
        case [name, der.Element(tag=der.INTEGER) as serial]:
            signer = common_name(name)
            return replace(signature, signer=signer, issuer=name.whole, serial=serial.value.hex())
        case _:
            raise der.DerError("the signer is not named by issuer and serial number")


def _identifier(algorithm: der.Element) -> bytes:
    fields = der.inside(algorithm, der.SEQUENCE)
    if not fields:
        raise der.DerError("an algorithm is missing")
    return der.expect(fields[0], der.OBJECT).value


def _digest(identifier: bytes) -> str:
    known = _DIGESTS.get(identifier)
    return known.name if known else identifier.hex()


def _algorithm(identifier: bytes) -> str:
    if identifier.startswith(_RSA):
        return "rsa"
    return "ecdsa" if identifier.startswith(_ECDSA) else identifier.hex()


def _check(signature: Signature, content: bytes, certificate: Certificate) -> Verdict:
    digest = _BY_NAME[signature.digest]
    try:
        match certificate.public_key(), signature.algorithm:
            case rsa.RSAPublicKey() as key, "rsa":
                key.verify(signature.value, content, padding.PKCS1v15(), digest)
            case ec.EllipticCurvePublicKey() as key, "ecdsa":
                key.verify(signature.value, content, ec.ECDSA(digest))
            case _:
                return Verdict.WRONG_KEY
    except InvalidSignature:
        return Verdict.ALTERED
    except (ValueError, UnsupportedAlgorithm):
        return Verdict.WRONG_KEY
    return Verdict.VALID
