"""One module through one guest: sync, build, load, exercise, unload. What the module does wrong is a value."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import stat
import tarfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kmlab import store
from kmlab.errors import ConfigError, GuestUnreachable, LabError
from kmlab.events import Deadline, printable
from kmlab.guest import WORKSHOP, Guest
from kmlab.host.ssh import Answer
from kmlab.kernel.diagnostics import Diagnostic
from kmlab.kernel.holders import NAMES, Holder, find_holders, parse_names, question
from kmlab.kernel.loaded import Listed, Look, look_at, parse_look
from kmlab.kernel.loading import parse_symbol_owners
from kmlab.kernel.modinfo import ModInfo

SKIPPED = frozenset({".git", ".kmlab", ".venv", "__pycache__", ".tmp_versions"})
"""Folders of the host's that no build in a guest wants."""
_LOOK_PATIENCE = 20.0
"""Seconds for a guest that has answered to say what its kernel has now."""
_LARGEST_SOURCE = 512 << 20
"""Bytes of one module's folder; beyond that it is a mistake, such as a kernel tree or a disk image."""


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
    """All of the module's folder but what a build of the host's own left there."""
    if not source.is_dir():
        what = "a file, not a folder" if source.exists() else "no such folder"
        hint = f"give its folder: {printable(str(source.parent))}" if source.exists() else "give a module's folder"
        raise ConfigError(f"{printable(str(source))}: {what}", hint)
    found: Manifest = {}
    total = 0
    for parent, folders, names in os.walk(os.fsencode(source)):
        folders[:] = sorted(f for f in folders if os.fsdecode(f) not in SKIPPED)
        here = set(names)
        for name in [*folders, *sorted(names)]:
            full = os.path.join(parent, name)
            path = os.fsdecode(os.path.relpath(full, os.fsencode(source)))
            if _left_by_kbuild(name, here):
                continue
            try:
                status = os.lstat(full)
            except FileNotFoundError:
                continue  # an editor's, gone since
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISLNK(status.st_mode):
                found[path] = Entry("link", 0o777, 0, 0, os.fsdecode(os.readlink(full)))
            elif stat.S_ISDIR(status.st_mode):
                found[path] = Entry("folder", mode, 0, 0)
            elif stat.S_ISREG(status.st_mode):
                found[path] = Entry("file", mode, status.st_size, status.st_mtime_ns)
                total += status.st_size
        folders[:] = [f for f in folders if not os.path.islink(os.path.join(parent, f))]
        if total > _LARGEST_SOURCE:
            raise ConfigError(
                f"{printable(str(source))}: holds more than {_LARGEST_SOURCE >> 20} MiB",
                "give the folder of the module alone",
            )
    return found


def _left_by_kbuild(name: bytes, beside: set[bytes]) -> bool:
    """What kbuild made has a `.NAME.cmd` beside it; sources never do. A .o_shipped or a lone .o is a source."""
    if re.fullmatch(rb"\..*\.(cmd|d)", name) and name.endswith(b".cmd"):
        return True
    if b"." + name + b".cmd" in beside:
        return True
    stem = name.removesuffix(b".mod").removesuffix(b".mod.c")
    return name.endswith((b".mod", b".mod.c")) and b"." + stem + b".ko.cmd" in beside


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
    paths = set(changed)
    for path in changed:
        paths.update(str(parent) for parent in PurePosixPath(path).parents if str(parent) != ".")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(paths):
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
                try:
                    content = (source / path).read_bytes()
                except OSError as error:
                    raise ConfigError(f"{printable(str(source / path))}: {error.strerror}") from None
                member.size = len(content)
                member.mtime = entry.mtime_ns / 1e9
                member.pax_headers = {"mtime": f"{entry.mtime_ns // 10**9}.{entry.mtime_ns % 10**9:09d}"}
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def read_manifest(place: Path) -> Manifest:
    value = store.read_json(place)
    return {path: Entry(*entry) for path, entry in value.items()} if isinstance(value, dict) else {}


def write_manifest(place: Path, manifest: Manifest) -> None:
    # As ASCII: a file's name need not be UTF-8.
    listed = {p: [e.kind, e.mode, e.size, e.mtime_ns, e.target] for p, e in manifest.items()}
    store.write_text(place, json.dumps(listed))


def _must(answer: Answer, what: str) -> None:
    if answer.lost or answer.code is None:
        raise GuestUnreachable(f"the guest went away: could not {what}")
    if not answer.ok:
        raise LabError(f"the guest could not {what}: {printable(answer.error_text.strip(), 300)}")


def strip(guest: Guest, folder: PurePosixPath, paths: Sequence[str], deadline: Deadline) -> dict[str, bytes]:
    """Strip modules of their debug information in the guest, which takes a signature with it; as they are then."""
    found = {}
    for path in paths:
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
    store.write_json(_noted(guest, name), sorted(names))


def noted_names(guest: Guest, name: str) -> frozenset[str] | None:
    """What there was before this module was loaded, if kmlab loaded it."""
    value = store.read_json(_noted(guest, name))
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
