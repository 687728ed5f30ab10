"""Make or adopt the lab's key pair for modules, and sign with it. The private key stays on the host."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import AskPassphrase, Deadline, silent
from kmlab.common.paths import LabFiles
from kmlab.config.lab import GuestSpec
from kmlab.config.run_options import ALTERED, AUTO, LAB_KEY, STRIPPED, WRONG_KEY, signs
from kmlab.host import key_files
from kmlab.host.key_files import KeyPair, KeyPaths, find_saved_pair, load_pair, save_pair
from kmlab.host.process import locks
from kmlab.kernel.signing.guest_keyring import from_json
from kmlab.kernel.signing.key_ids import kernel_name
from kmlab.kernel.signing.load_check import GuestKeyring, explain
from kmlab.kernel.signing.pkcs7 import make_key_pair, sign_module
from kmlab.kernel.signing.signature import MAGIC, TRAILER, strip_signature
from kmlab.kernel.symbols.elf import read_object

_CERTIFICATE_SUFFIXES = (".der", ".pem", ".crt", ".x509", ".pub", ".cert")
_MAX_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Signer:
    """A key pair that signs modules."""

    pair: KeyPair
    remember: Path | None = None
    """The file that records the signed builds."""
    alters: bool = False
    """Whether to change the module after signing, to test that it is rejected."""
    strips: bool = False
    """Whether to strip the module after signing, for the same reason."""

    @property
    def name(self) -> str:
        """Return the kernel's name for the certificate."""
        return kernel_name(self.pair.certificate)

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the certificate in DER, in hex, as mokutil(1) and openssl print it."""
        return hashlib.sha256(self.pair.der).hexdigest()

    def sign(self, image: bytes, name: str, arch: str | None = None) -> bytes:
        """Return the module with only this key's signature."""
        signed = sign_module(image, self.pair.key, self.pair.certificate, name=name, arch=arch)
        if self.remember is not None:
            _record_signed(self.remember, build_id(image), content_digest(image))
        return _change_byte(signed) if self.alters else signed


def ensure_pair(files: LabFiles, lab: str) -> KeyPaths:
    """Return the lab's pair. Create it if there is none."""
    pair = find_saved_pair(files.keys)
    if pair is not None:
        return pair
    link = files.keys / key_files.KEY
    if link.is_symlink():
        raise ConfigError(
            f"{link.readlink()}: the lab's key is missing",
            f"restore it, use another (kmlab sign --mok --key K), or let kmlab make one: rm -r {files.keys}",
        )
    key, certificate = make_key_pair(f"kmlab {lab} {datetime.now(timezone.utc):%Y-%m-%d}")
    try:
        return save_pair(key, certificate, files.keys)
    except ConfigError:
        # Another kmlab has created one in the meantime.
        pair = find_saved_pair(files.keys)
        if pair is None:
            raise
        return pair


def adopt_pair(
    key: Path, certificate: Path | None, files: LabFiles, ask: AskPassphrase | None
) -> tuple[KeyPair, Path | None]:
    """Make an existing pair the lab's, without moving the key. Also return where the previous pair is kept, if any."""
    pair = load_pair(key, certificate or certificate_beside(key), ask)
    saved, old_certificate, aside = find_saved_pair(files.keys), files.keys / key_files.CERTIFICATE, None
    if saved is not None and digest(old_certificate) == hashlib.sha256(pair.der).hexdigest():
        return pair, None
    if old_certificate.is_file():
        aside = files.keys.with_name(f"{files.keys.name}{paths.SET_ASIDE}{digest(old_certificate)[:8]}")
        paths.remove_tree(aside)
        files.keys.rename(aside)
    key_files.link_pair(key, pair.certificate, files.keys)
    return pair, aside


def lab_signer(files: LabFiles, lab: str, ask: AskPassphrase | None) -> Signer:
    """Return the signer with the lab's own key."""
    places = ensure_pair(files, lab)
    return Signer(load_pair(places.key, places.certificate, ask), files.keys / "signed.json")


def other_signer(key: str | Path, certificate: Path | None, ask: AskPassphrase | None) -> Signer:
    """Return the signer with the key in a file, or for WRONG_KEY with a new key that is not stored."""
    if str(key) == WRONG_KEY:
        return Signer(KeyPair(*make_key_pair("kmlab wrong key")))
    place = Path(key)
    return Signer(load_pair(place, certificate or certificate_beside(place), ask))


def certificate_beside(key: Path) -> Path | None:
    """Find the certificate with the key's name in its folder, such as MOK.der for MOK.priv; None if there is none."""
    candidates = [key.with_suffix(suffix) for suffix in _CERTIFICATE_SUFFIXES]
    return next((path for path in candidates if path != key and path.is_file()), None)


def digest(certificate: Path) -> str:
    """Return a certificate's fingerprint: SHA-256 of its DER, in hex, as mokutil(1) and openssl print it."""
    return hashlib.sha256(certificate.read_bytes()).hexdigest()


def signer_for(files: LabFiles, lab: str, spec: GuestSpec, key: str, ask: AskPassphrase | None) -> Signer | None:
    """Return the signer of a run in this guest, if any. `key` is one of the words of `run_options`, or a key file."""
    if not signs(key, spec):
        return None
    if key in (AUTO, LAB_KEY, ALTERED, STRIPPED):
        signer = lab_signer(files, lab, ask)
        return replace(signer, alters=key == ALTERED, strips=key == STRIPPED)
    return other_signer(key, None, ask)


def keyring_of(guest: paths.GuestFiles, name: str) -> GuestKeyring | None:
    """Return the guest's keys at its last start; None if it was never started."""
    value = paths.read_json(guest.keyring)
    return from_json(name, value) if isinstance(value, dict) else None


def why_refused(files: LabFiles, image: bytes, name: str, keyring: GuestKeyring) -> str | None:
    """Return why the guest's kernel rejected this module, and the remedy; None if the signature is not the cause."""
    about = explain(image, keyring, was_signed=was_stripped(files, image), name=name)
    return f"{name} was refused: {about.why}. What to do: {about.remedy}." if about.loads is False else None


def was_stripped(files: LabFiles, image: bytes) -> bool:
    """Return whether an unsigned module is a build that kmlab signed and that has changed since (strip(1))."""
    record = paths.read_json(files.keys / "signed.json")
    signed_digest = record.get(build_id(image)) if isinstance(record, dict) else None
    return signed_digest is not None and signed_digest != content_digest(image)


def content_digest(image: bytes) -> str:
    """Return the SHA-256 of a module without its signature, in hex."""
    return hashlib.sha256(strip_signature(image)).hexdigest()


def build_id(image: bytes) -> str:
    """Return the linker's build ID (ld's --build-id), which strip keeps; empty if there is none."""
    try:
        elf = read_object(image, "the module")
        section = elf.find(".note.gnu.build-id")
        return elf.content(section)[16:].hex() if section else ""
    except ConfigError:
        return ""


def _change_byte(image: bytes) -> bytes:
    """Return the signed module with one byte changed that the kernel does not use: in .comment, or in the signature."""
    elf = read_object(image, "the module")
    comment = elf.find(".comment")
    offset = (
        comment.offset + 1 if comment and len(elf.content(comment)) > 1 else len(image) - len(MAGIC) - TRAILER.size - 1
    )
    return image[:offset] + bytes([image[offset] ^ 1]) + image[offset + 1 :]


def _record_signed(place: Path, build: str, content: str) -> None:
    with locks.held(place.with_suffix(".lock"), "what was signed", silent, Deadline(60)):
        record = paths.read_json(place)
        digests = dict(record) if isinstance(record, dict) else {}
        if build and digests.get(build) != content:
            newest = list(digests.items())[1 - _MAX_REMEMBERED :]
            paths.write_json(place, {**dict(newest), build: content})
