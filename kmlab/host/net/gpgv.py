"""Verify detached OpenPGP signatures with gpgv(1) and exactly one accepted key.

The result comes from gpgv's status lines (GnuPG's doc/DETAILS), never from its messages.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ImageError
from kmlab.common.events import Deadline
from kmlab.host.process import command

_STRONG = {"8": "SHA256", "9": "SHA384", "10": "SHA512", "11": "SHA224"}
"""Accepted hash algorithms by number (RFC 9580, section 9.5). Older ones can be forged."""
_DOCUMENT = ("00", "01")
"""Classes of signatures of a document, binary or text. Other classes sign keys."""


@dataclass(frozen=True, slots=True)
class GoodSignature:
    """A valid signature."""

    fingerprint: str
    """The fingerprint of the primary key."""
    made: int
    """When it was made, in seconds since 1970."""


def verify(content: bytes, signature: bytes, keyring: Path, fingerprint: str, what: str) -> GoodSignature:
    """Verify that only the key `fingerprint` signed `content`. Raise ImageError if not."""
    with (
        tempfile.TemporaryDirectory(prefix="kmlab-gpgv-", dir=paths.make_folder(paths.work())) as home,
        tempfile.TemporaryFile() as status_file,
        command.inheritable(status_file.fileno()) as handle,
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
        status_file.seek(0)
        return parse_status(status_file.read().decode("utf-8", "replace"), done.code, fingerprint, what)


def parse_status(status: str, code: int, fingerprint: str, what: str) -> GoodSignature:
    """Return the signature that gpgv's status lines report. Raise ImageError if it is not acceptable."""
    lines = [line.split()[1:] for line in status.splitlines() if line.startswith("[GNUPG:] ")]
    keywords: dict[str, list[str]] = {words[0]: words[1:] for words in lines if words}
    if "BADSIG" in keywords:
        raise ImageError(f"{what}: the signature does not match: the content was changed after it was signed")
    if "NO_PUBKEY" in keywords:
        raise ImageError(f"{what}: signed by another key ({keywords['NO_PUBKEY'][0][:40]}) than {fingerprint}")
    if "EXPKEYSIG" in keywords or "REVKEYSIG" in keywords:
        raise ImageError(f"{what}: the signing key {fingerprint} has expired or was revoked")
    if "EXPSIG" in keywords:
        raise ImageError(f"{what}: its signature has expired")
    valid = [words[1:] for words in lines if words[:1] == ["VALIDSIG"]]
    if code != 0 or "GOODSIG" not in keywords or not valid:
        raise ImageError(f"{what}: has no signature that gpgv can check")
    for words in valid:
        if len(words) < 10 or words[9] != fingerprint:
            raise ImageError(f"{what}: signed by another key ({words[-1][:40]}) than {fingerprint}")
        if words[7] not in _STRONG or words[8] not in _DOCUMENT:
            raise ImageError(
                f"{what}: its signature uses an insecure hash or a wrong class (hash {words[7]}, class {words[8]})"
            )
    return GoodSignature(valid[0][9], min(int(words[2]) for words in valid))
