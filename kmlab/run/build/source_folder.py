"""Read a module's folder on the host as make sees it, and copy it to the guest."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import stat
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kmlab.common import folder_tree, paths
from kmlab.common.errors import ConfigError, GuestUnreachable, LabError
from kmlab.common.events import Deadline, printable
from kmlab.host.channel.ssh import Answer
from kmlab.provision.guest import MODULES_FOLDER, Guest

SKIPPED = frozenset({".git", ".kmlab", ".venv", "__pycache__", ".tmp_versions"})
"""Folders on the host that no build in a guest needs."""
_MAKEFILES = ("Kbuild", "Makefile", "dkms.conf")
_LARGEST_SOURCE = 512 << 20
"""Bytes of one module's folder. A larger one is a mistake, such as a kernel tree or a disk image."""
_MOST_SOURCES = 50_000
"""Files and folders in it."""
_DEEPEST_SOURCE = 256
"""Folders in folders; a path must also be shorter than PATH_MAX."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a module's folder as make sees it."""

    kind: str
    """file, folder or link."""
    mode: int
    size: int
    mtime_ns: int
    target: str = ""

    def same(self, other: Entry | None) -> bool:
        if other is None or self.kind != other.kind:
            return False
        return self.mode == other.mode if self.kind == "folder" else self == other


Manifest = dict[str, Entry]


def folder_in_guest(name: str) -> PurePosixPath:
    """Return the module's folder in a guest."""
    return MODULES_FOLDER / name


def read_folder(source: Path, largest: int | None = None, most: int | None = None) -> Manifest:
    """Read the module's folder, without the files that a build on the host left there.

    Skip pipes, sockets and devices. Raise ConfigError if it is no folder of files, or has more bytes or files.
    """
    manifest: Manifest = {}
    total = 0
    largest, most = largest or _LARGEST_SOURCE, most or _MOST_SOURCES
    for entry in _walk(source):
        status = entry.status
        mode = stat.S_IMODE(status.st_mode)
        if _is_skipped(entry) or _is_kbuild_output(entry.name, entry.siblings):
            continue
        if entry.path is None or entry.path.count("/") > _DEEPEST_SOURCE:
            raise ConfigError(
                f"{printable(str(source))}: holds folders in folders, more than {_DEEPEST_SOURCE} deep",
                "name the module's own folder",
            )
        if stat.S_ISLNK(status.st_mode):
            with contextlib.suppress(OSError):
                manifest[entry.path] = Entry("link", 0o777, 0, 0, os.readlink(entry.name, dir_fd=entry.parent))
        elif stat.S_ISDIR(status.st_mode):
            manifest[entry.path] = Entry("folder", mode, 0, 0)
        elif stat.S_ISREG(status.st_mode):
            manifest[entry.path] = Entry("file", mode, status.st_size, status.st_mtime_ns)
            total += status.st_size
        if total > largest:
            raise ConfigError(
                f"{printable(str(source))}: holds more than {largest >> 20} MiB",
                "name the module's own folder",
            )
        if len(manifest) > most:
            raise ConfigError(
                f"{printable(str(source))}: holds more than {most} files",
                "name the module's own folder",
            )
    return manifest


def makefiles_below(top: Path) -> list[str]:
    """Return the sorted paths of all Kbuild, Makefile and dkms.conf below a folder, except hidden folders."""
    if not top.is_dir():
        return []
    makefiles = [e.path for e in _walk(top) if e.path is not None and e.name in _MAKEFILES]
    visible = [path for path in makefiles if not any(part.startswith(".") for part in path.split("/"))]
    return sorted(path for path in visible if (top / path).is_file())


def read_source(source: Path, path: str, most: int = _LARGEST_SOURCE) -> bytes:
    """Read the first `most` bytes of a file in a module's folder. Raise ConfigError, naming it, if that fails."""
    try:
        with folder_tree.opened(source) as top:
            # To read /proc/kmsg is to take the kernel's messages away from those who wait for them.
            content = folder_tree.read_file(top, path, most, follow=True, refuse=_kernel_file_systems())
    except OSError as error:
        raise _unreadable(source / path, error) from None
    if content is None:
        raise ConfigError(
            f"{printable(str(source / path))}: is no regular file of a disk", "put the file itself into the folder"
        )
    return content


def read_if_there(source: Path, path: str) -> bytes | None:
    """Read a file that was listed before; None if it is gone: an editor removes its temporary files at any time."""
    with contextlib.suppress(OSError), folder_tree.opened(source) as top:
        os.stat(path, dir_fd=top, follow_symlinks=False)
        return read_source(source, path)
    return None


def _walk(source: Path) -> Iterator[folder_tree.TreeEntry]:
    """Yield everything in the user's folder. Raise ConfigError if it cannot be read or is a kernel file system."""
    try:
        if not source.is_dir():
            what = "a file, not a folder" if source.exists() else "no such folder"
            hint = f"give its folder: {printable(str(source.parent))}" if source.exists() else "give a module's folder"
            raise ConfigError(f"{printable(str(source))}: {what}", hint)
        kernels = _kernel_file_systems()
        with folder_tree.opened(source) as top:
            device = os.fstat(top).st_dev
            if device in kernels:
                raise _no_files(source, kernels[device])

            def unreadable(entry: folder_tree.TreeEntry, error: OSError) -> None:
                raise _unreadable(source / (entry.path or entry.name), error)

            for entry in folder_tree.walk(top, lambda entry: not _is_skipped(entry), unreadable):
                if entry.status.st_dev in kernels and stat.S_ISDIR(entry.status.st_mode):
                    raise _no_files(source / (entry.path or entry.name), kernels[entry.status.st_dev])
                yield entry
    except OSError as error:
        raise _unreadable(source, error) from None


def _unreadable(path: Path, error: OSError) -> ConfigError:
    hint = "make it readable, or move it out of the module's folder" if isinstance(error, PermissionError) else None
    return ConfigError(f"{printable(str(path))}: {error.strerror or error}", hint)


def _no_files(path: Path, kind: str) -> ConfigError:
    return ConfigError(
        f"{printable(str(path))}: holds no source files, only what the kernel shows there ({printable(kind)})",
        "give a module's folder",
    )


def _kernel_file_systems() -> dict[int, str]:
    """Return this host's file systems without real files, such as /proc, by device (proc(5), mountinfo)."""
    devices = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            before, _, after = line.partition(b" - ")
            kind = after.split(b" ", 1)[0].decode("ascii", "replace")
            if kind in _KERNEL_FILE_SYSTEMS:
                major, minor = before.split()[2].split(b":")
                devices[os.makedev(int(major), int(minor))] = kind
    return devices


_KERNEL_FILE_SYSTEMS = frozenset(
    ("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "bpf")
)


def _is_skipped(entry: folder_tree.TreeEntry) -> bool:
    return entry.name in SKIPPED and stat.S_IFMT(entry.status.st_mode) in (stat.S_IFDIR, stat.S_IFLNK)


def _is_kbuild_output(name: str, beside: Collection[str]) -> bool:
    """Return whether kbuild made the file: then a `.NAME.cmd` is next to it. A .o_shipped or lone .o is a source."""
    if re.fullmatch(r"\..*\.(cmd|d)", name) and name.endswith(".cmd"):
        return True
    if f".{name}.cmd" in beside:
        return True
    stem = name.removesuffix(".mod").removesuffix(".mod.c")
    return name.endswith((".mod", ".mod.c")) and f".{stem}.ko.cmd" in beside


def sync(guest: Guest, name: str, source: Path, deadline: Deadline, below: str = ".") -> tuple[int, int]:
    """Make the module's folder in the guest equal to the one on the host; return (files sent, files removed).

    Files that make left in the guest stay, so that it rebuilds only what it must. `below` is where in the source the
    module's own folder lies: where that changes, nothing stays.
    """
    manifest = read_folder(source)
    record = guest.files.synced / f"{name}.json"
    sent = read_manifest(record)
    if has_moved(record, below):
        remove = f"rm -rf {shlex.quote(str(folder_in_guest(name)))}; mkdir -p {shlex.quote(str(folder_in_guest(name)))}"
        require_ok(guest.run(remove, deadline), "remove old files")
        record.unlink(missing_ok=True)
        sent = {}
    deleted = [path for path, entry in sent.items() if (now := manifest.get(path)) is None or now.kind != entry.kind]
    changed = [path for path, entry in manifest.items() if not entry.same(sent.get(path))]
    if deleted or sent == {}:
        remote_folder = shlex.quote(str(folder_in_guest(name)))
        line = f"mkdir -p {remote_folder} && cd {remote_folder} && xargs -0 rm -rf --"
        names = b"\0".join(b"./" + os.fsencode(path) for path in deleted)
        require_ok(guest.run(line, deadline, data=names), "remove old files")
    if changed:
        line = f"tar -C {shlex.quote(str(folder_in_guest(name)))} -xpf - --no-same-owner"
        archive, gone = _archive(source, manifest, changed)
        require_ok(guest.run(line, deadline, data=archive), "unpack the module's files")
        for path in gone:
            del manifest[path]
        changed = [path for path in changed if path in manifest]
    if deleted or changed:
        write_manifest(record, manifest)
    note_place(record, below)
    return len([p for p in changed if manifest[p].kind != "folder"]), len(deleted)


def has_moved(record: Path, below: str) -> bool:
    """Return whether the module's folder lies elsewhere in what is sent than in the copy that the record is of."""
    place = paths.read_json(record.with_suffix(".place"))
    return record.exists() and (place if isinstance(place, str) else ".") != below


def note_place(record: Path, below: str) -> None:
    """Store where the module's folder lies in a copy."""
    place = record.with_suffix(".place")
    if below == ".":
        place.unlink(missing_ok=True)
    else:
        paths.write_json(place, below)


def _archive(source: Path, manifest: Manifest, changed: Sequence[str]) -> tuple[bytes, list[str]]:
    """Return an archive of the changed files, and those that have vanished since they were listed."""
    gone: list[str] = []
    # Include their folders: unpacking a folder replaces a symbolic link that something in the guest put there.
    places = set(changed)
    for path in changed:
        places.update(str(parent) for parent in PurePosixPath(path).parents if str(parent) != ".")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(places):
            entry = manifest[path]
            member = tarfile.TarInfo(path)
            member.mode = entry.mode
            if entry.kind == "link":
                member.type, member.linkname = tarfile.SYMTYPE, entry.target
                archive.addfile(member)
            elif entry.kind == "folder":
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                content = read_if_there(source, path)
                if content is None:
                    gone.append(path)
                    continue
                member.size = len(content)
                member.mtime = entry.mtime_ns / 1e9
                member.pax_headers = {"mtime": f"{entry.mtime_ns // 10**9}.{entry.mtime_ns % 10**9:09d}"}
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue(), gone


def read_manifest(place: Path) -> Manifest:
    value = paths.read_json(place)
    return {path: Entry(*entry) for path, entry in value.items()} if isinstance(value, dict) else {}


def write_manifest(place: Path, manifest: Manifest) -> None:
    # As ASCII: a file's name need not be UTF-8.
    listed = {p: [e.kind, e.mode, e.size, e.mtime_ns, e.target] for p, e in manifest.items()}
    paths.write_text(place, json.dumps(listed))


def require_ok(answer: Answer, what: str) -> None:
    if answer.lost or answer.code is None:
        raise GuestUnreachable(f"the guest went away: could not {what}")
    if not answer.ok:
        raise LabError(f"the guest could not {what}: {printable(answer.error_text.strip(), 300)}")
