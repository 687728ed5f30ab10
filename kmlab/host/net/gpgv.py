"""Detached OpenPGP signatures, checked by gpgv(1) with one key and no other.

What gpgv found is read from its status lines (GnuPG's doc/DETAILS), never from its texts.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from kmlab.common.errors import ImageError
from kmlab.common.events import Deadline
from kmlab.host.process import command

_STRONG = {"8": "SHA256", "9": "SHA384", "10": "SHA512", "11": "SHA224"}
"""Hash algorithms by their numbers (RFC 9580, section 9.5). What is older can be forged."""
_DOCUMENT = ("00", "01")
"""Classes of signatures over a document, binary or text; the others sign keys."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that is good."""

    fingerprint: str
    """Of the key's owner: its primary key."""
    made: int
    """Seconds since 1970."""


def verify(content: bytes, signature: bytes, keyring: Path, fingerprint: str, what: str) -> Signed:
    """Who signed `content`, and when; ImageError unless it was the key `fingerprint`, and it alone."""
    with (
        tempfile.TemporaryDirectory(prefix="kmlab-gpgv-") as home,
        tempfile.TemporaryFile() as told,
        command.inheritable(told.fileno()) as handle,
    ):
        folder = Path(home)
        (folder / "content").write_bytes(content)
        (folder / "signature").write_bytes(signature)
        argv = ["gpgv", "--homedir", home, "--status-fd", str(handle), "--keyring", str(keyring.resolve())]
        done = command.run(
            [*argv, folder / "signature", folder / "content"],
            deadline=Deadline(60),
            accept=tuple(range(256)),
            pass_files=(handle,),
        )
        told.seek(0)
        return judge(told.read().decode("utf-8", "replace"), done.code, fingerprint, what)


def judge(status: str, code: int, fingerprint: str, what: str) -> Signed:
    """What gpgv's status lines come to."""
    said = [line.split()[1:] for line in status.splitlines() if line.startswith("[GNUPG:] ")]
    found: dict[str, list[str]] = {words[0]: words[1:] for words in said if words}
    if "BADSIG" in found:
        raise ImageError(f"{what}: altered after it was signed: the signature does not fit")
    if "NO_PUBKEY" in found:
        raise ImageError(f"{what}: signed by another key ({found['NO_PUBKEY'][0][:40]}) than {fingerprint}")
    if "EXPKEYSIG" in found or "REVKEYSIG" in found:
        raise ImageError(f"{what}: signed by the key {fingerprint}, which has expired or was revoked")
    if "EXPSIG" in found:
        raise ImageError(f"{what}: its signature has expired")
    valid = [words[1:] for words in said if words[:1] == ["VALIDSIG"]]
    if code != 0 or "GOODSIG" not in found or not valid:
        raise ImageError(f"{what}: has no signature that gpgv can check")
    for words in valid:
        if len(words) < 10 or words[9] != fingerprint:
            raise ImageError(f"{what}: signed by another key ({words[-1][:40]}) than {fingerprint}")
        if words[7] not in _STRONG or words[8] not in _DOCUMENT:
            raise ImageError(
                f"{what}: its signature is of a kind that proves nothing (hash {words[7]}, class {words[8]})"
            )
    return Signed(valid[0][9], min(int(words[2]) for words in valid))
