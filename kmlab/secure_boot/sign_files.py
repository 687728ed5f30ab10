"""What `kmlab sign` tells of a lab: which guest has its key, and which guest would load which file; all offline."""

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
    """Who had signed it before; None if nobody had."""


@dataclass(frozen=True, slots=True)
class Explained:
    """A file, and what each guest of the lab would make of it."""

    file: Path
    description: Description
    guests: tuple[Explanation, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """What one `kmlab sign` did."""

    signer: Signer
    notes: Sequence[str]
    guests: Sequence[Enrolment]
    signed: Sequence[Signed]
    mok: bool
    """Whether it was about the lab's key."""


def make(files: paths.LabFiles, lab: str) -> list[str]:
    """See to it that the lab has a key; what a person should know of that."""
    if key_files.find_saved_pair(files.keys) is not None:
        return []
    places = ensure_pair(files, lab)
    notes = [f"made the lab's key: {places.key}"]
    for other in key_files.find_system_pairs():
        may = "" if other.readable else " (as root)"
        notes.append(
            f"this host has {other.whose} key, too; to make it the lab's{may}: "
            f"kmlab sign --mok --key {other.key} --cert {other.certificate}"
        )
    return notes


def adopt(files: paths.LabFiles, key: Path, certificate: Path | None, ask: AskPassphrase | None) -> list[str]:
    """Make an existing key the lab's; what a person should know of that."""
    _, aside = adopt_pair(key, certificate, files, ask)
    return [f"the key that the lab had before is kept in {aside}"] if aside else []


def require_secure(specs: Sequence[GuestSpec]) -> None:
    """ConfigError if one of these guests has no Secure Boot to enrol a key for."""
    for spec in specs:
        if not spec.secure_boot:
            raise ConfigError(f"guest '{spec.name}' has no Secure Boot", "give it `secure_boot: true` in lab.yaml")


def enrolments(lab: Lab, specs: Sequence[GuestSpec]) -> list[Enrolment]:
    """Of these guests, those with Secure Boot. A key is enrolled when the checkpoint is made, before the first boot."""
    certificate = _lab_certificate(lab)
    found = []
    for spec in specs:
        if not spec.secure_boot:
            continue
        recorded = keyring_of(lifecycle.lab_files(lab).guest(spec.name), spec.name)
        if recorded is None:
            found.append(Enrolment(spec.name, False, "is enrolled at its first start, before it boots"))
        elif certificate is not None and certificate in recorded.certificates:
            found.append(Enrolment(spec.name, True, "has it enrolled"))
        else:
            found.append(Enrolment(spec.name, False, "had another key: is enrolled anew at its next start"))
    return found


def sign_files(signer: Signer, places: Sequence[Path]) -> list[Signed]:
    """Sign modules in place; none is written unless all can be."""
    contents = {path: _read(path) for path in places}
    signed = {path: signer.sign(content, printable(str(path))) for path, content in contents.items()}
    for path, content in signed.items():
        _replace(path, content)
    return [Signed(path, _signed_by(contents[path])) for path in places]


def explain_file(path: Path, lab: Lab | None, certificates: Sequence[Certificate] = ()) -> Explained:
    """Who signed a module, whether that holds, and for each guest of the lab whether it would load and why not.

    `certificates` are others to check the signature with, beside the lab's and those of its guests.
    """
    content, name = _read(path), printable(str(path))
    keyrings = [guest_keyring(lab, spec) for spec in lab.guests.values()] if lab else []
    own = _lab_certificate(lab) if lab else None
    known = [*certificates, *([own] if own else []), *(c for k in keyrings for c in k.certificates)]
    stripped = lab is not None and was_stripped(lifecycle.lab_files(lab), content)
    guests = [explain(content, keyring, was_signed=stripped, name=name) for keyring in keyrings]
    return Explained(path, describe(content, known, name=name), tuple(guests))


def guest_keyring(lab: Lab, spec: GuestSpec) -> GuestKeyring:
    """The keys of a guest as they will be at its next start: as recorded, where lab.yaml and key are still the same."""
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
    found = key_files.find_saved_pair(lifecycle.lab_files(lab).keys)
    return key_files.load_certificate(found.certificate) if found else None


def _signed_by(content: bytes) -> str | None:
    signature = read_signature(content)
    if signature is None:
        return None
    return signature.signer or signature.key_id or "somebody whose name cannot be read"


def _read(path: Path) -> bytes:
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
    """Put the new content in the old one's place at once, with its mode; through a symbolic link."""
    place = path.resolve()
    try:
        paths.replace_file(place, content, place.stat().st_mode & 0o777)
    except OSError as error:
        raise ConfigError(f"{printable(str(path))}: cannot write the signed module: {error.strerror}") from None
