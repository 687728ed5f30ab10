"""The lab's key pair for modules: made or adopted, and what signs with it. The private key stays on the host."""

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

_BESIDE = (".der", ".pem", ".crt", ".x509", ".pub", ".cert")
_MOST_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Signer:
    """A key pair at work."""

    pair: KeyPair
    remember: Path | None = None
    """Where to note which builds it has signed."""
    alters: bool = False
    """Whether the module is changed once it is signed, to see it refused."""
    strips: bool = False
    """Whether it is to be stripped once it is signed, for the same reason."""

    @property
    def name(self) -> str:
        """As the kernel calls its certificate."""
        return kernel_name(self.pair.certificate)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate in DER, in hex, as mokutil(1) and openssl print it."""
        return hashlib.sha256(self.pair.der).hexdigest()

    def sign(self, image: bytes, name: str, arch: str | None = None) -> bytes:
        """The module with this key's signature, and no other."""
        signed = sign_module(image, self.pair.key, self.pair.certificate, name=name, arch=arch)
        if self.remember is not None:
            _note(self.remember, build_id(image), content_digest(image))
        return _altered(signed) if self.alters else signed


def ensure_pair(files: LabFiles, lab: str) -> KeyPaths:
    """The lab's pair; made when there is none."""
    found = find_saved_pair(files.keys)
    if found is not None:
        return found
    link = files.keys / key_files.KEY
    if link.is_symlink():
        raise ConfigError(
            f"{link.readlink()}: this was made the lab's key and is not there any more",
            f"put it back, give another (kmlab sign --mok --key K), or have one made: rm -r {files.keys}",
        )
    key, certificate = make_key_pair(f"kmlab {lab} {datetime.now(timezone.utc):%Y-%m-%d}")
    try:
        return save_pair(key, certificate, files.keys)
    except ConfigError:
        # Another kmlab was quicker.
        found = find_saved_pair(files.keys)
        if found is None:
            raise
        return found


def adopt_pair(
    key: Path, certificate: Path | None, files: LabFiles, ask: AskPassphrase | None
) -> tuple[KeyPair, Path | None]:
    """Make an existing pair the lab's: the key stays where it is. With it, where the pair before it is kept, if any."""
    pair = load_pair(key, certificate or certificate_beside(key), ask)
    found, before, aside = find_saved_pair(files.keys), files.keys / key_files.CERTIFICATE, None
    if found is not None and digest(before) == hashlib.sha256(pair.der).hexdigest():
        return pair, None
    if before.is_file():
        aside = files.keys.with_name(f"{files.keys.name}{paths.SET_ASIDE}{digest(before)[:8]}")
        paths.remove_tree(aside)
        files.keys.rename(aside)
    key_files.link_pair(key, pair.certificate, files.keys)
    return pair, aside


def lab_signer(files: LabFiles, lab: str, ask: AskPassphrase | None) -> Signer:
    """What signs with the lab's own key."""
    places = ensure_pair(files, lab)
    return Signer(load_pair(places.key, places.certificate, ask), files.keys / "signed.json")


def other_signer(key: str | Path, certificate: Path | None, ask: AskPassphrase | None) -> Signer:
    """What signs with another key: a file's, or for WRONG_KEY a new one that is kept nowhere."""
    if str(key) == WRONG_KEY:
        return Signer(KeyPair(*make_key_pair("kmlab wrong key")))
    place = Path(key)
    return Signer(load_pair(place, certificate or certificate_beside(place), ask))


def certificate_beside(key: Path) -> Path | None:
    """The certificate of the same name in the key's folder, as MOK.der is beside MOK.priv; None if there is none."""
    candidates = [key.with_suffix(suffix) for suffix in _BESIDE]
    return next((path for path in candidates if path != key and path.is_file()), None)


def digest(certificate: Path) -> str:
    """SHA-256 of a certificate in DER, in hex: its fingerprint, as mokutil(1) and openssl print it."""
    return hashlib.sha256(certificate.read_bytes()).hexdigest()


def signer_for(files: LabFiles, lab: str, spec: GuestSpec, wanted: str, ask: AskPassphrase | None) -> Signer | None:
    """What a run in this guest signs with. `wanted` is one of the words of `options`, or the file of a key."""
    if not signs(wanted, spec):
        return None
    if wanted in (AUTO, LAB_KEY, ALTERED, STRIPPED):
        own = lab_signer(files, lab, ask)
        return replace(own, alters=wanted == ALTERED, strips=wanted == STRIPPED)
    return other_signer(wanted, None, ask)


def keyring_of(guest: paths.GuestFiles, name: str) -> GuestKeyring | None:
    """The guest's keys as they were when it was last started; None if it never was."""
    value = paths.read_json(guest.keyring)
    return from_json(name, value) if isinstance(value, dict) else None


def why_refused(files: LabFiles, image: bytes, name: str, keyring: GuestKeyring) -> str | None:
    """Why the guest's kernel refused this module, and what to do; None if its signature does not explain it."""
    about = explain(image, keyring, was_signed=was_stripped(files, image), name=name)
    return f"{name} was refused: {about.why}. What to do: {about.remedy}." if about.loads is False else None


def was_stripped(files: LabFiles, image: bytes) -> bool:
    """Whether kmlab has signed this very build and it has been altered since, as strip does; for an unsigned module."""
    known = paths.read_json(files.keys / "signed.json")
    before = known.get(build_id(image)) if isinstance(known, dict) else None
    return before is not None and before != content_digest(image)


def content_digest(image: bytes) -> str:
    """SHA-256 of a module without its signature, in hex."""
    return hashlib.sha256(strip_signature(image)).hexdigest()


def build_id(image: bytes) -> str:
    """The linker's own name for a build (ld's --build-id), which strip leaves in place; empty if it has none."""
    try:
        elf = read_object(image, "the module")
        section = elf.find(".note.gnu.build-id")
        return elf.content(section)[16:].hex() if section else ""
    except ConfigError:
        return ""


def _altered(image: bytes) -> bytes:
    """The signed module with one byte changed that no kernel looks at: the compiler's name, or the signature."""
    elf = read_object(image, "the module")
    comment = elf.find(".comment")
    at = comment.offset + 1 if comment and len(elf.content(comment)) > 1 else len(image) - len(MAGIC) - TRAILER.size - 1
    return image[:at] + bytes([image[at] ^ 1]) + image[at + 1 :]


def _note(place: Path, build: str, content: str) -> None:
    with locks.held(place.with_suffix(".lock"), "what was signed", silent, Deadline(60)):
        known = paths.read_json(place)
        listed = dict(known) if isinstance(known, dict) else {}
        if build and listed.get(build) != content:
            kept = list(listed.items())[1 - _MOST_REMEMBERED :]
            paths.write_json(place, {**dict(kept), build: content})
