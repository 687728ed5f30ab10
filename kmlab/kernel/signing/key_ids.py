"""What a key is called: by the kernel, by `modinfo`, and in a signature.

Follows crypto/asymmetric_keys/x509_public_key.c and x509_cert_parser.c.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography.x509 import Certificate, ExtensionNotFound, Name, SubjectKeyIdentifier
from cryptography.x509.oid import NameOID, ObjectIdentifier

from kmlab.kernel.signing import der

_COMMON_NAME = bytes.fromhex("550403")
_BMP_STRING = 0x1E
_SAME_START = 7


class Issuer(NamedTuple):
    """How a signature names the certificate of its key, as a rule."""

    name: bytes
    """The issuer's name as it is encoded in the certificate; compared byte by byte."""
    serial: str
    """The serial number in lower-case hex, with a leading zero byte where the encoding has one."""


def key_id(certificate: Certificate) -> str:
    """Return the key's id as the kernel prints it: the subject key id, or the serial number if there is none."""
    try:
        return certificate.extensions.get_extension_for_class(SubjectKeyIdentifier).value.digest.hex()
    except (ExtensionNotFound, ValueError):
        serial = bytes.fromhex(issuer_of(certificate).serial)
        return (serial[1:] if len(serial) > 1 and serial[0] == 0 else serial).hex()


def kernel_name(certificate: Certificate) -> str:
    """`NAME: KEYID`, as in the kernel's line "Loaded X.509 cert 'NAME: KEYID'" and in `keyctl list`."""
    return f"{subject_name(certificate.subject)}: {key_id(certificate)}"


def subject_name(name: Name) -> str:
    """Return the name that the kernel makes of a subject: "O: CN", CN alone if it begins like O, or the e-mail."""
    common = _last(name, NameOID.COMMON_NAME)
    organisation = _last(name, NameOID.ORGANIZATION_NAME)
    if common and organisation:
        longer = min(len(common), len(organisation)) >= _SAME_START
        alike = longer and common[:_SAME_START] == organisation[:_SAME_START]
        return common if alike or common.startswith(organisation) else f"{organisation}: {common}"
    return common or organisation or _last(name, NameOID.EMAIL_ADDRESS)


def issuer_of(certificate: Certificate) -> Issuer:
    """Return the certificate's issuer and serial number, exactly as they are encoded in it."""
    match der.only(certificate.tbs_certificate_bytes, der.SEQUENCE):
        case [der.Element(tag=0xA0), serial, _, issuer, *_] | [serial, _, issuer, *_]:
            return Issuer(issuer.whole, der.expect(serial, der.INTEGER).value.hex())
        case _:
            raise der.DerError("the certificate lacks a part")


def common_name(name: der.Element) -> str:
    """Return the common name in an encoded name, empty if it has none."""
    found = ""
    for part in der.inside(name, der.SEQUENCE):
        for attribute in der.inside(part, der.SET):
            match der.inside(attribute, der.SEQUENCE):
                case [kind, text] if kind.value == _COMMON_NAME:
                    found = text.value.decode("utf-16-be" if text.tag == _BMP_STRING else "utf-8", "replace")
    return found


def _last(name: Name, oid: ObjectIdentifier) -> str:
    values = [str(attribute.value) for attribute in name.get_attributes_for_oid(oid)]
    return values[-1] if values else ""
