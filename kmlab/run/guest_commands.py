"""One module through one guest: sync, build, load, exercise, unload. What the module does wrong is a value."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import stat
import tarfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kmlab.common import folder_tree, paths
from kmlab.common.errors import ConfigError, GuestUnreachable, LabError
from kmlab.common.events import Deadline, printable
from kmlab.host.channel.ssh import Answer
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.module.load_errors import parse_symbol_owners
from kmlab.kernel.module.modinfo import ModInfo
from kmlab.kernel.module.proc_modules import Listed, Look, look_at, parse_look
from kmlab.kernel.module.users import NAMES, Holder, find_holders, parse_names, question
from kmlab.provision.guest import WORKSHOP, Guest

SKIPPED = frozenset({".git", ".kmlab", ".venv", "__pycache__", ".tmp_versions"})
"""Folders of the host's that no build in a guest wants."""
_LOOK_PATIENCE = 20.0
"""Seconds for a guest that has answered to say what its kernel has now."""
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


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run and how it went."""

    name: str
    outcome: str
    """ok, failed, hang, lost, skipped."""
    seconds: float
    detail: str = ""
    began: float = 0.0
    """Seconds after the run's start."""


@dataclass(frozen=True, slots=True)
class Built:
    """What make left."""

    ok: bool
    log: str
    how: str
    diagnostics: tuple[Diagnostic, ...] = ()
    reason: str | None = None
    images: Mapping[str, bytes] = field(default_factory=dict)
    """The .ko files by their path in the module's folder."""
    modules: tuple[tuple[str, ModInfo], ...] = ()
    """Path and what it says of itself, in the order to load them."""
    outside: tuple[str, ...] = ()
    """Modules of the kernel's own to load before."""
    undelivered: Mapping[str, bytes] = field(default_factory=dict)
    """What the module's folder in the guest has not got yet, by path."""

    @property
    def paths(self) -> str:
        """The modules, for people."""
        return ", ".join(path for path, _ in self.modules) or "no module"


def workshop(name: str) -> PurePosixPath:
    """The module's folder in a guest."""
    return WORKSHOP / name


# --- sync ----------------------------------------------------------------------------------------------------------


def read_folder(source: Path) -> Manifest:
    """All of the module's folder but what a build of the host's own left there.

    Pipes, sockets and devices are passed over. Raises ConfigError where it is no folder of files, or too much of one.
    """
    found: Manifest = {}
    total = 0
    for entry in _walked(source):
        status = entry.status
        mode = stat.S_IMODE(status.st_mode)
        if _is_skipped(entry) or _left_by_kbuild(entry.name, entry.beside):
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


def _walked(source: Path) -> Iterator[folder_tree.Found]:
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

            def unreadable(entry: folder_tree.Found, error: OSError) -> None:
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


def _is_skipped(entry: folder_tree.Found) -> bool:
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
        _must(guest.run(line, deadline, data=names), "remove old files")
    if changed:
        line = f"tar -C {shlex.quote(str(workshop(name)))} -xpf - --no-same-owner"
        _must(guest.run(line, deadline, data=_archive(source, wanted, changed)), "unpack the module's files")
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


def _must(answer: Answer, what: str) -> None:
    if answer.lost or answer.code is None:
        raise GuestUnreachable(f"the guest went away: could not {what}")
    if not answer.ok:
        raise LabError(f"the guest could not {what}: {printable(answer.error_text.strip(), 300)}")


def strip(guest: Guest, folder: PurePosixPath, places: Sequence[str], deadline: Deadline) -> dict[str, bytes]:
    """Strip modules of their debug information in the guest, which takes a signature with it; as they are then."""
    found = {}
    for path in places:
        place = shlex.quote(str(folder / path))
        answer = guest.run(f"strip --strip-debug {place} && cat {place}", deadline)
        _must(answer, "strip the module")
        found[path] = answer.out
    return found


# --- load, exercise, unload ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    """What a step in the guest came to."""

    answer: Answer
    now: Look | None
    """What the guest's kernel had right after it; None where it could not be asked any more."""

    def listed(self, module: str) -> Listed | None:
        """What the kernel said of a module right after the step."""
        return self.now.modules.get(module) if self.now else None


def load(
    guest: Guest,
    folder: PurePosixPath,
    path: str,
    module: str,
    params: Sequence[str],
    around: Around,
    outside: Sequence[str] = (),
) -> Told:
    """insmod one module."""
    before = "".join(f"modprobe -- {shlex.quote(name)}; " for name in outside)
    line = f"cd {shlex.quote(str(folder))}; {before}insmod {shlex.join([f'./{path}', *params])}"
    return _told(guest, line, around, module)


def unload(guest: Guest, module: str, around: Around) -> Told:
    """rmmod one module."""
    return _told(guest, f"rmmod {shlex.quote(module)}", around)


def exercise(guest: Guest, folder: PurePosixPath, what: str, module: str, around: Around) -> Told:
    """The person's own command, as root in the module's folder."""
    environment = f"export KMLAB_MODULE={shlex.quote(module)}"
    return _told(guest, f"cd {shlex.quote(str(folder))}; {environment}; sh -c {shlex.quote(what)}", around)


@dataclass(frozen=True, slots=True)
class Around:
    """What surrounds a step: its deadline, what ends it early, and the word that marks the kernel's log."""

    deadline: Deadline
    abandon: threading.Event
    mark: str


def _told(guest: Guest, line: str, around: Around, module: str | None = None) -> Told:
    answer = guest.run(f"{{ {line}; }} < /dev/null", around.deadline, abandon=around.abandon)
    if answer.code is None:
        return Told(answer, None)
    # A line of the kernel's own log tells where the step ends. The refusal of a module does not name it.
    deadline = Deadline(_LOOK_PATIENCE)
    seen = guest.shell.look(look_at(module), deadline, mark=around.mark, abandon=around.abandon)
    return Told(answer, parse_look(seen.text))


class State(NamedTuple):
    """What a guest has before a module is loaded."""

    kernel: Look
    names: frozenset[str]
    """Its devices, files and file systems: see kernel/holders."""


def read_state(guest: Guest, mark: str, deadline: Deadline) -> State:
    """Ask the guest, and mark in its kernel's log where the run begins."""
    names = parse_names(guest.run(NAMES, deadline).text)
    return State(guest.look(deadline, mark=mark), names)


def note_names(guest: Guest, name: str, names: frozenset[str]) -> None:
    """Remember what there was before a module was loaded, for a command that unloads it later."""
    paths.write_json(_noted(guest, name), sorted(names))


def noted_names(guest: Guest, name: str) -> frozenset[str] | None:
    """What there was before this module was loaded, if kmlab loaded it."""
    value = paths.read_json(_noted(guest, name))
    return frozenset(value) if isinstance(value, list) else None


def _noted(guest: Guest, name: str) -> Path:
    """As true of this guest alone as what was sent to it."""
    return guest.files.synced / "loaded" / f"{name}.json"


def holders_of(guest: Guest, module: str, before: frozenset[str] | None, deadline: Deadline) -> tuple[Holder, ...]:
    """Who besides other modules keeps a module from being unloaded."""
    return find_holders(guest.run(question(module), deadline).out, module, before)


def owner_of(guest: Guest, symbol: str, deadline: Deadline) -> str | None:
    """Who exports a symbol, as the guest's kernel and its headers list it: a module, `vmlinux`, or None."""
    name = shlex.quote(symbol)
    line = f"cd /lib/modules/$(uname -r) && grep -h -F -w -- {name} build/Module.symvers modules.symbols 2> /dev/null"
    return parse_symbol_owners(guest.run(line, deadline).text).get(symbol)
