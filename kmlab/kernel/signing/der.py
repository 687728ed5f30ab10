"""Reading DER, the encoding of certificates and signatures (ITU-T X.690), as far as a module needs it.

Why not a library: `cryptography` writes PKCS#7 but does not read its signer, and calls its own `hazmat.asn1`
unstable; asn1crypto has had no release since 2022. A signature without attributes needs five tags.
"""

from __future__ import annotations

from typing import NamedTuple

INTEGER = 0x02
OCTET_STRING = 0x04
OBJECT = 0x06
SEQUENCE = 0x30
SET = 0x31

_LONG_FORM = 0x80
_HIGH_TAG = 0x1F
_MOST_LENGTH_BYTES = 4


class DerError(ValueError):
    """These bytes are not what the format says they must be."""


class Element(NamedTuple):
    """One element: its tag, its contents, and all of its bytes with the header."""

    tag: int
    value: bytes
    whole: bytes


def context(number: int, *, constructed: bool = True) -> int:
    """Return the tag of `[number]`."""
    return (0xA0 if constructed else 0x80) | number


def elements(encoded: bytes) -> list[Element]:
    """Return the elements that lie one after the other in `encoded`, which they must fill."""
    found = []
    at = 0
    while at < len(encoded):
        element, at = _read(encoded, at)
        found.append(element)
    return found


def only(encoded: bytes, tag: int) -> list[Element]:
    """Return the children of the one element, with this tag, that `encoded` consists of."""
    found = elements(encoded)
    if len(found) != 1:
        raise DerError(f"one element expected, {len(found)} found")
    return inside(found[0], tag)


def inside(element: Element, tag: int) -> list[Element]:
    """Return the children of `element`, which must have this tag."""
    expect(element, tag)
    return elements(element.value)


def expect(element: Element, tag: int) -> Element:
    if element.tag != tag:
        raise DerError(f"tag {tag:#04x} expected, {element.tag:#04x} found")
    return element


def _read(encoded: bytes, at: int) -> tuple[Element, int]:
    if at + 1 >= len(encoded):
        raise DerError("the encoding is cut short")
    tag, length, begin = encoded[at], encoded[at + 1], at + 2
    if tag & _HIGH_TAG == _HIGH_TAG:
        raise DerError("a tag of more than one byte")
    if length & _LONG_FORM:
        count = length & ~_LONG_FORM
        if not 1 <= count <= _MOST_LENGTH_BYTES:
            raise DerError("a length that DER does not allow")
        begin += count
        length = int.from_bytes(encoded[at + 2 : begin], "big")
    end = begin + length
    if end > len(encoded):
        raise DerError("the encoding is cut short")
    return Element(tag, encoded[begin:end], encoded[at:end]), end
