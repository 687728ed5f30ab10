"""A module's folder as make sees it: read on the host, and made the same in the guest."""

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
"""Folders of the host's that no build in a guest wants."""
_LARGEST_SOURCE = 512 << 20
"""Bytes of one module's folder; beyond that it is a mistake, such as a kernel tree or a disk image."""
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


def workshop(name: str) -> PurePosixPath:
    """The module's folder in a guest."""
    return MODULES_FOLDER / name


def read_folder(source: Path) -> Manifest:
    """All of the module's folder but what a build of the host's own left there.

    Pipes, sockets and devices are passed over. Raises ConfigError where it is no folder of files, or too much of one.
    """
    found: Manifest = {}
    total = 0
    for entry in _walked(source):
        status = entry.status
        mode = stat.S_IMODE(status.st_mode)
        if _is_skipped(entry) or _left_by_kbuild(entry.name, entry.siblings):
            continue
        if entry.path is None or entry.path.count("/") > _DEEPEST_SOURCE:
            raise ConfigError(
                f"{printable(str(source))}: holds folders in folders, more than {_DEEPEST_SOURCE} deep",
                "give the folder of the module alone",
            )
        if stat.S_ISLNK(status.st_mode):
            with contextlib.suppress(OSError):
                found[entry.path] = Entry("link", 0o777, 0, 0, os.readlink(entry.name, dir_fd=entry.parent))
        elif stat.S_ISDIR(status.st_mode):
            found[entry.path] = Entry("folder", mode, 0, 0)
        elif stat.S_ISREG(status.st_mode):
            found[entry.path] = Entry("file", mode, status.st_size, status.st_mtime_ns)
            total += status.st_size
        if total > _LARGEST_SOURCE:
            raise ConfigError(
                f"{printable(str(source))}: holds more than {_LARGEST_SOURCE >> 20} MiB",
                "give the folder of the module alone",
            )
        if len(found) > _MOST_SOURCES:
            raise ConfigError(
                f"{printable(str(source))}: holds more than {_MOST_SOURCES} files",
                "give the folder of the module alone",
            )
    return found


def makefiles_below(top: Path) -> list[str]:
    """The paths of all files called Kbuild or Makefile beneath a folder, but for hidden folders; sorted."""
    if not top.is_dir():
        return []
    found = [e.path for e in _walked(top) if e.path is not None and e.name in ("Kbuild", "Makefile")]
    visible = [path for path in found if not any(part.startswith(".") for part in path.split("/"))]
    return sorted(path for path in visible if (top / path).is_file())


def read_source(source: Path, path: str, most: int = _LARGEST_SOURCE) -> bytes:
    """The first `most` bytes of a file in a module's folder; ConfigError, naming it, where it cannot be read."""
    try:
        with folder_tree.opened(source) as top:
            content = folder_tree.read_file(top, path, most, follow=True)
    except OSError as error:
        raise _unreadable(source / path, error) from None
    if content is None:
        raise ConfigError(f"{printable(str(source / path))}: is no regular file any more", "run it again")
    return content


def _walked(source: Path) -> Iterator[folder_tree.TreeEntry]:
    """All that is in a person's folder; ConfigError where it cannot be looked through or is none of theirs."""
    try:
        if not source.is_dir():
            what = "a file, not a folder" if source.exists() else "no such folder"
            hint = f"give its folder: {printable(str(source.parent))}" if source.exists() else "give a module's folder"
            raise ConfigError(f"{printable(str(source))}: {what}", hint)
        kernels = _kernels_own()
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
        f"{printable(str(path))}: holds no files of anybody's, but what the kernel shows there ({printable(kind)})",
        "give a module's folder",
    )


def _kernels_own() -> dict[int, str]:
    """The file systems of this host that hold no files but what the kernel makes up, by device (proc(5), mountinfo)."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            before, _, after = line.partition(b" - ")
            kind = after.split(b" ", 1)[0].decode("ascii", "replace")
            if kind in _MADE_UP:
                major, minor = before.split()[2].split(b":")
                found[os.makedev(int(major), int(minor))] = kind
    return found


_MADE_UP = frozenset(
    ("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "bpf")
)


def _is_skipped(entry: folder_tree.TreeEntry) -> bool:
    return entry.name in SKIPPED and stat.S_IFMT(entry.status.st_mode) in (stat.S_IFDIR, stat.S_IFLNK)


def _left_by_kbuild(name: str, beside: Collection[str]) -> bool:
    """What kbuild made has a `.NAME.cmd` beside it; sources never do. A .o_shipped or a lone .o is a source."""
    if re.fullmatch(r"\..*\.(cmd|d)", name) and name.endswith(".cmd"):
        return True
    if f".{name}.cmd" in beside:
        return True
    stem = name.removesuffix(".mod").removesuffix(".mod.c")
    return name.endswith((".mod", ".mod.c")) and f".{stem}.ko.cmd" in beside


def sync(guest: Guest, name: str, source: Path, deadline: Deadline) -> tuple[int, int]:
    """Make the module's folder in the guest as it is on the host; (files sent, files removed).

    What make left in the guest stays, so that it rebuilds only what it must.
    """
    wanted = read_folder(source)
    place = guest.files.synced / f"{name}.json"
    known = read_manifest(place)
    gone = [path for path, entry in known.items() if (now := wanted.get(path)) is None or now.kind != entry.kind]
    changed = [path for path, entry in wanted.items() if not entry.same(known.get(path))]
    if gone or known == {}:
        place_there = shlex.quote(str(workshop(name)))
        line = f"mkdir -p {place_there} && cd {place_there} && xargs -0 rm -rf --"
        names = b"\0".join(b"./" + os.fsencode(path) for path in gone)
        require_ok(guest.run(line, deadline, data=names), "remove old files")
    if changed:
        line = f"tar -C {shlex.quote(str(workshop(name)))} -xpf - --no-same-owner"
        require_ok(guest.run(line, deadline, data=_archive(source, wanted, changed)), "unpack the module's files")
    if gone or changed:
        write_manifest(place, wanted)
    return len([p for p in changed if wanted[p].kind != "folder"]), len(gone)


def _archive(source: Path, wanted: Manifest, changed: Sequence[str]) -> bytes:
    # With their folders: unpacking a folder replaces a symbolic link that something in the guest put in its place.
    places = set(changed)
    for path in changed:
        places.update(str(parent) for parent in PurePosixPath(path).parents if str(parent) != ".")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(places):
            entry = wanted[path]
            member = tarfile.TarInfo(path)
            member.mode = entry.mode
            if entry.kind == "link":
                member.type, member.linkname = tarfile.SYMTYPE, entry.target
                archive.addfile(member)
            elif entry.kind == "folder":
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                content = read_source(source, path)
                member.size = len(content)
                member.mtime = entry.mtime_ns / 1e9
                member.pax_headers = {"mtime": f"{entry.mtime_ns // 10**9}.{entry.mtime_ns % 10**9:09d}"}
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


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
