"""Check keys and signatures as the kernel of a fake guest; follows kernel/module/signing.c."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from pathlib import Path

from cryptography import x509

from kmlab.kernel.signing import guest_keyring
from kmlab.kernel.signing.key_ids import kernel_name
from kmlab.kernel.signing.signature import Verdict, read_signature, verify


def enrolled(store: Path) -> tuple[x509.Certificate, ...] | None:
    """Return the certificates of MokList in a store of UEFI variables, as edk2 writes it; None without MokList."""
    content = store.read_bytes() if store.is_file() else b""
    at = content.find("MokList\0".encode("utf-16-le"))
    if at < 0:
        return None
    lists = content[at + 16 :]
    return tuple(map(x509.load_der_x509_certificate, guest_keyring.parse_signature_lists(lists)))


def keyring_answer(release: str, mok: Sequence[x509.Certificate] | None, enforces: Collection[str]) -> str:
    """Return a guest's answer to guestkeys.QUESTION."""
    secure = mok is not None
    signed, locked = secure and "sig_enforce" in enforces, secure and "lockdown" in enforces
    lists = b"".join(guest_keyring.signature_list(guest_keyring.der(c)) for c in mok or ())
    keys = [f"0a I------ 1 perm 1f010000 0 0 asymmetri {kernel_name(c)}: X509.rsa 00 []" for c in mok or ()]
    facts = [f"release={release}", "arch=x86_64", f"sig_enforce={'Y' if signed else 'N'}"]
    facts += [f"lockdown={'none [integrity]' if locked else '[none] integrity'} confidentiality"]
    facts += [f"secure_boot={int(secure)}", f"mok={base64.b64encode(lists).decode()}", *keys]
    return "\n".join(facts) + "\n"


def refusal(
    mok: Sequence[x509.Certificate] | None, image: bytes, enforces: Collection[str]
) -> tuple[str, tuple[str, ...]] | None:
    """Return insmod's error and the kernel's messages if the kernel loads only signed modules, and this one is not."""
    rejected = None if mok is None else _rejection(mok, image)
    if rejected is None:
        return None
    if "sig_enforce" not in enforces:
        return "Operation not permitted", ("<5>Lockdown: insmod: unsigned module loading is restricted; see man",)
    return "Key was rejected by service", rejected


def _rejection(mok: Sequence[x509.Certificate], image: bytes) -> tuple[str, ...] | None:
    verdicts = [verify(image, certificate) for certificate in mok]
    if Verdict.VALID in verdicts:
        return None
    if Verdict.ALTERED in verdicts:
        return ()
    if read_signature(image) is None:
        return ("<5>Loading of unsigned module is rejected",)
    return ("<5>Loading of module with unavailable key is rejected",)
