"""Sign files, enrol the lab's key, and explain which guest would load which file; all offline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.x509 import Certificate

from kmlab.common import folder_tree, paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import AskPassphrase, printable
from kmlab.config.lab import GuestSpec, Lab
from kmlab.host import key_files
from kmlab.kernel.signing.load_check import Description, Explanation, GuestKeyring, describe, explain
from kmlab.kernel.signing.signature import read_signature
from kmlab.provision import lifecycle
from kmlab.provision.plan.lab_key import Signer, adopt_pair, ensure_pair, keyring_of, was_stripped

_LARGEST = 512 << 20
"""Bytes of a module; no module is that large."""


@dataclass(frozen=True, slots=True)
class Enrolment:
    """One guest with Secure Boot, and whether its kernel has the lab's key."""

    guest: str
    enrolled: bool
    what: str


@dataclass(frozen=True, slots=True)
class Signed:
    """A file that now has a signature."""

    file: Path
    replaced: str | None
    """The previous signer; None if it was not signed."""


@dataclass(frozen=True, slots=True)
class FileExplanation:
    """A file, and whether each guest of the lab would load it."""

    file: Path
    description: Description
    guests: tuple[Explanation, ...]


@dataclass(frozen=True, slots=True)
class SignResult:
    """The result of one `kmlab sign`."""

    signer: Signer
    notes: Sequence[str]
    guests: Sequence[Enrolment]
    signed: Sequence[Signed]
    mok: bool
    """Whether the command enrolled the lab's key."""


def make(files: paths.LabFiles, lab: str) -> list[str]:
    """Create the lab's key if it does not exist; return notes for the user."""
    if key_files.find_saved_pair(files.keys) is not None:
        return []
    places = ensure_pair(files, lab)
    notes = [f"made the lab's key: {places.key}"]
    for other in key_files.find_system_pairs():
        may = "" if other.readable else " (as root)"
        notes.append(
            f"this host also has {other.whose} key; to use it as the lab's key{may}: "
            f"kmlab sign --mok --key {other.key} --cert {other.certificate}"
        )
    return notes


def adopt(files: paths.LabFiles, key: Path, certificate: Path | None, ask: AskPassphrase | None) -> list[str]:
    """Make an existing key the lab's; return notes for the user."""
    _, aside = adopt_pair(key, certificate, files, ask)
    return [f"the lab's previous key is kept in {aside}"] if aside else []


def require_secure(specs: Sequence[GuestSpec]) -> None:
    """Raise ConfigError if one of these guests has no Secure Boot."""
    for spec in specs:
        if not spec.secure_boot:
            raise ConfigError(f"guest '{spec.name}' has no Secure Boot", "give it `secure_boot: true` in lab.yaml")


def enrolments(lab: Lab, specs: Sequence[GuestSpec]) -> list[Enrolment]:
    """Return the guests with Secure Boot. A key is enrolled before the first boot, for the checkpoint."""
    certificate = _lab_certificate(lab)
    entries = []
    for spec in specs:
        if not spec.secure_boot:
            continue
        recorded = keyring_of(lifecycle.lab_files(lab).guest(spec.name), spec.name)
        if recorded is None:
            entries.append(Enrolment(spec.name, False, "the key is enrolled at its first start, before it boots"))
        elif certificate is not None and certificate in recorded.certificates:
            entries.append(Enrolment(spec.name, True, "the key is enrolled"))
        else:
            entries.append(Enrolment(spec.name, False, "it has another key: this one is enrolled at its next start"))
    return entries


def sign_files(signer: Signer, places: Sequence[Path]) -> list[Signed]:
    """Sign modules in place; write none unless all can be signed."""
    contents = {path: read_module(path) for path in places}
    signed = {path: signer.sign(content, printable(str(path))) for path, content in contents.items()}
    for path, content in signed.items():
        _replace(path, content)
    return [Signed(path, _signed_by(contents[path])) for path in places]


def explain_file(path: Path, lab: Lab | None, certificates: Sequence[Certificate] = ()) -> FileExplanation:
    """Explain who signed a module, whether the signature is valid, and which guests would load it and why.

    `certificates` are further ones to check the signature with, besides those of the lab and its guests.
    """
    content, name = read_module(path), printable(str(path))
    keyrings = [guest_keyring(lab, spec) for spec in lab.guests.values()] if lab else []
    own = _lab_certificate(lab) if lab else None
    known_certificates = [*certificates, *([own] if own else []), *(c for k in keyrings for c in k.certificates)]
    stripped = lab is not None and was_stripped(lifecycle.lab_files(lab), content)
    guests = [explain(content, keyring, was_signed=stripped, name=name) for keyring in keyrings]
    return FileExplanation(path, describe(content, known_certificates, name=name), tuple(guests))


def guest_keyring(lab: Lab, spec: GuestSpec) -> GuestKeyring:
    """Return a guest's keys at its next start: the recorded ones, if lab.yaml and key have not changed."""
    recorded = keyring_of(lifecycle.lab_files(lab).guest(spec.name), spec.name)
    own = _lab_certificate(lab)
    enrolled = (own,) if own and spec.secure_boot else ()
    if recorded is None:
        return GuestKeyring(spec.name, "", "", spec.secure_boot, certificates=enrolled)
    if recorded.secure_boot != spec.secure_boot:
        return GuestKeyring(spec.name, recorded.release, recorded.arch, spec.secure_boot, certificates=enrolled)
    if set(enrolled) <= set(recorded.certificates):
        return recorded
    return dataclasses.replace(recorded, certificates=enrolled)


def _lab_certificate(lab: Lab) -> Certificate | None:
    pair = key_files.find_saved_pair(lifecycle.lab_files(lab).keys)
    return key_files.load_certificate(pair.certificate) if pair else None


def _signed_by(content: bytes) -> str | None:
    signature = read_signature(content)
    if signature is None:
        return None
    return signature.signer or signature.key_id or "an unreadable name"


def read_module(path: Path) -> bytes:
    """Return the content of a module's file. Raise ConfigError if it cannot be one."""
    shown = printable(str(path))
    try:
        if path.is_dir():
            raise ConfigError(f"{shown}: is a folder", "name the .ko files in it")
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{shown}: far too large for a module", "name the .ko that make built")
        with folder_tree.opened(path.parent) as folder:
            content = folder_tree.read_file(folder, path.name, _LARGEST, follow=True)
    except OSError as error:
        raise ConfigError(f"{shown}: cannot read this module: {error.strerror}", "check the path") from None
    if content is None:
        raise ConfigError(f"{shown}: is no regular file", "name the .ko that make built")
    return content


def _replace(path: Path, content: bytes) -> None:
    """Replace a file's content at once and keep its mode; follow a symbolic link."""
    place = path.resolve()
    try:
        paths.replace_file(place, content, place.stat().st_mode & 0o777)
    except OSError as error:
        raise ConfigError(f"{printable(str(path))}: cannot write the signed module: {error.strerror}") from None
