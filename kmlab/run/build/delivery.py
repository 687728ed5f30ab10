"""Copy sources to a sandbox's folder, and what a build left to the guest: only what is not there yet."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import tarfile
from collections.abc import Mapping
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import GuestUnreachable, LabError
from kmlab.common.events import Deadline, printable
from kmlab.host.process.untrusted_folder import UntrustedFolder
from kmlab.provision.guest import Guest
from kmlab.run.build.source_folder import (
    Manifest,
    folder_in_guest,
    has_moved,
    note_place,
    read_folder,
    read_if_there,
    read_manifest,
    write_manifest,
)


def mirror(source: Path, target: Path, below: str = ".") -> tuple[int, int]:
    """Make `target` equal to `source`, except for what make left there; return (files copied, files removed).

    Copy only changed files, keep their times, and remove deleted files, so that make rebuilds only what it must.
    `below` is where in the source the module's own folder lies: where that changes, nothing stays.
    """
    manifest = read_folder(source)
    record = copy_record(target)
    if has_moved(record, below):
        record.unlink(missing_ok=True)
        paths.remove_tree(target)
    delivered: Manifest = read_manifest(record) if target.is_dir() else {}
    deleted = [
        path for path, entry in delivered.items() if (now := manifest.get(path)) is None or now.kind != entry.kind
    ]
    changed = [path for path, entry in manifest.items() if not entry.same(delivered.get(path))]
    if deleted or changed:
        # After an interrupted copy, the next one copies everything.
        record.unlink(missing_ok=True)
        with UntrustedFolder(target) as folder:
            for path in deleted:
                folder.remove(path)
            for path in sorted(changed):
                entry = manifest[path]
                if entry.kind == "folder":
                    folder.put_folder(path, entry.mode)
                elif entry.kind == "link":
                    folder.put_link(path, entry.target)
                elif (content := read_if_there(source, path)) is not None:
                    folder.put_file(path, content, entry.mode, entry.mtime_ns)
                else:
                    del manifest[path]
        write_manifest(record, manifest)
    note_place(record, below)
    return len([path for path in changed if path in manifest and manifest[path].kind != "folder"]), len(deleted)


def copy_record(target: Path) -> Path:
    """Return the record of what was copied to a sandbox's folder."""
    return target.parent / ".copied" / f"{target.name}.json"


def still_delivered(guest: Guest, name: str, deadline: Deadline) -> Mapping[str, str]:
    """Return the digests of the delivered files that the guest still has, by path: an exercise may change some.

    Call it while make runs, so that the answer costs no time.
    """
    delivered = read_digests(delivery_record(guest, name))
    if not delivered:
        return {}
    line = f"cd {shlex.quote(str(folder_in_guest(name)))} && xargs -0 sha256sum -z --"
    answer = guest.run(line, deadline, data=b"".join(os.fsencode(f"./{path}\0") for path in sorted(delivered)))
    present = {entry[66:].removeprefix(b"./"): entry[:64].decode() for entry in answer.out.split(b"\0") if entry}
    return {path: digest for path, digest in delivered.items() if present.get(os.fsencode(path)) == digest}


def deliver(
    guest: Guest, name: str, files: Mapping[str, bytes], delivered: Mapping[str, str], deadline: Deadline
) -> None:
    """Put the built files into the module's folder in the guest, except for those that it already has."""
    digests = {path: digest(content) for path, content in files.items()}
    missing = {path: files[path] for path in sorted(files) if delivered.get(path) != digests[path]}
    if missing:
        record = delivery_record(guest, name)
        record.unlink(missing_ok=True)
        line = f"tar -C {shlex.quote(str(folder_in_guest(name)))} -xpf - --no-same-owner"
        answer = guest.run(line, deadline, data=_pack(missing))
        if answer.lost or answer.code is None:
            raise GuestUnreachable("the guest went away: could not take the built modules")
        if not answer.ok:
            raise LabError(f"the guest could not take the built modules: {printable(answer.error_text.strip(), 300)}")
        paths.write_text(record, json.dumps(digests))


def _pack(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.mode, member.size = (0o644 if path.endswith(".ko") else 0o755), len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def delivery_record(guest: Guest, name: str) -> Path:
    """Return the record of the files sent to this guest. Restoring the guest removes it."""
    return guest.files.synced / "built" / f"{name}.json"


def read_digests(record: Path) -> Mapping[str, str]:
    value = paths.read_json(record)
    return value if isinstance(value, dict) else {}
