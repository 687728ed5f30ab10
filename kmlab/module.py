"""One module through one guest: sync, build, load, exercise, unload. What the module does wrong is a value."""

from __future__ import annotations

import io
import os
import re
import shlex
import stat
import tarfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kmlab import store
from kmlab.errors import ConfigError, GuestUnreachable, LabError
from kmlab.events import Deadline, printable
from kmlab.guest import WORKSHOP, Guest, parse_facts
from kmlab.host.ssh import Answer
from kmlab.kernel import kbuild
from kmlab.kernel.buildreason import build_reason
from kmlab.kernel.diagnostics import Diagnostic, parse_diagnostics
from kmlab.kernel.modinfo import LoadOrder, ModInfo, load_order, parse_modinfo

SKIPPED = frozenset({".git", ".kmlab", ".venv", "__pycache__", ".tmp_versions"})
"""Folders of the host's that no build in a guest wants."""
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


def workshop(name: str) -> PurePosixPath:
    """The module's folder in a guest."""
    return WORKSHOP / name


# --- sync ----------------------------------------------------------------------------------------------------------


def read_folder(source: Path) -> Manifest:
    """All of the module's folder but what a build of the host's own left there."""
    if not source.is_dir():
        raise ConfigError(f"{printable(str(source))}: no such folder", "give the folder of a module's Makefile")
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
            status = os.lstat(full)
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
    place = guest.files.root / "synced" / f"{name}.json"
    known = _read_manifest(place)
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
        _write_manifest(place, wanted)
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


def _read_manifest(place: Path) -> Manifest:
    value = store.read_json(place)
    return {path: Entry(*entry) for path, entry in value.items()} if isinstance(value, dict) else {}


def _write_manifest(place: Path, manifest: Manifest) -> None:
    store.write_json(place, {p: [e.kind, e.mode, e.size, e.mtime_ns, e.target] for p, e in manifest.items()})


def _must(answer: Answer, what: str) -> None:
    if answer.lost or answer.code is None:
        raise GuestUnreachable(f"the guest went away: could not {what}")
    if not answer.ok:
        raise LabError(f"the guest could not {what}: {printable(answer.error_text.strip(), 300)}")


# --- build ---------------------------------------------------------------------------------------------------------


def build(guest: Guest, name: str, source: Path, deadline: Deadline, say: Callable[[str], None]) -> Built:
    """Run make for the guest's own kernel, and bring the .ko files to the host."""
    release, folder = guest.record.release, workshop(name)
    texts = {
        f: (source / f).read_text("utf-8", "replace") for f in ("Kbuild", *kbuild.MAKEFILES) if (source / f).is_file()
    }
    about = kbuild.inspect_folder(texts)
    ways = kbuild.make_commands(about.kind, folder, release, os.cpu_count() or 1)
    if not ways:
        raise ConfigError(
            f"{printable(str(source))}: no Kbuild file, and no Makefile with obj-m",
            "write a Makefile with `obj-m := NAME.o`, or give the folder that has one",
        )
    tried: list[Built] = []
    for way in ways:
        tried.append(_make(guest, way, about, folder, release, deadline, say))
        if tried[-1].ok or not about.has_makefile:
            break
    # The first way is the one whose words a person knows; the second only counts when it helped.
    return tried[-1] if tried[-1].ok else tried[0]


def _make(
    guest: Guest,
    way: kbuild.BuildCommand,
    about: kbuild.Folder,
    folder: PurePosixPath,
    release: str,
    deadline: Deadline,
    say: Callable[[str], None],
) -> Built:
    argv = ["env", *(f"--unset={n}" for n in kbuild.quiet_environment()), *(f"{n}={v}" for n, v in way.environment)]
    argv += ["LC_ALL=C", *way.argv]
    # The log goes to stderr and, if all is well, the modules to stdout: one round trip for both.
    line = (
        f"cd {shlex.quote(str(way.folder))} || exit 90; {shlex.join(argv)} >&2 || exit $?; "
        "find . \\( -name '*.ko' -o -name modules.order \\) -type f -print0 | tar -cf - --null --files-from=-"
    )
    answer = guest.run(line, deadline, on_output=_lines(say))
    if answer.lost:
        raise GuestUnreachable("the guest went away during the build")
    log = answer.error_text
    diagnostics = tuple(parse_diagnostics(log, folder))
    images = _modules_in(answer.out) if answer.ok else {}
    if answer.ok and images:
        infos = {path: parse_modinfo(image, path) for path, image in images.items()}
        order = load_order(infos.values())
        return Built(True, log, way.how, diagnostics, None, images, _with_paths(infos, order), order.outside)
    reason = build_reason(log, answer.code, diagnostics, release, folder=about)
    return Built(False, log, way.how, diagnostics, reason)


def _with_paths(infos: Mapping[str, ModInfo], order: LoadOrder) -> tuple[tuple[str, ModInfo], ...]:
    paths = {info.name: path for path, info in infos.items()}
    return tuple((paths[info.name], info) for info in order.modules)


def _modules_in(archive: bytes) -> dict[str, bytes]:
    """The .ko files that this build made: those that some modules.order names, or all if there is none."""
    modules: dict[str, bytes] = {}
    named: list[str] = []
    orders = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            for member in members:
                content = members.extractfile(member) if member.isreg() else None
                if content is None:
                    continue
                path = str(PurePosixPath(member.name))
                if path.endswith(".ko"):
                    modules[path] = content.read()
                else:
                    orders += 1
                    named += content.read().decode("utf-8", "replace").split()
    except tarfile.TarError:
        return {}
    endings = tuple(re.sub(r"\.o$", ".ko", word) for word in named)
    made = {p: image for p, image in modules.items() if any(w == p or w.endswith(f"/{p}") for w in endings)}
    return made if orders and made else ({} if orders and not endings else modules)


def _lines(say: Callable[[str], None]) -> Callable[[bytes], None]:
    """`say` the last whole line of what comes, if it is text."""

    def hear(chunk: bytes) -> None:
        if b"\0" not in chunk:
            lines = chunk.decode("utf-8", "replace").strip().splitlines()
            if lines:
                say(printable(lines[-1].strip(), 100))

    return hear


# --- load, exercise, unload ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    """What a step in the guest came to."""

    answer: Answer
    taint: int | None
    holders: tuple[str, ...] = ()
    refcount: int | None = None
    state: str | None = None


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
    return _told(guest, line, module, around)


def unload(guest: Guest, module: str, around: Around) -> Told:
    """rmmod one module."""
    return _told(guest, f"rmmod {shlex.quote(module)}", module, around)


def exercise(guest: Guest, folder: PurePosixPath, what: str, module: str, around: Around) -> Told:
    """The person's own command, as root in the module's folder."""
    environment = f"export KMLAB_MODULE={shlex.quote(module)}"
    return _told(guest, f"cd {shlex.quote(str(folder))}; {environment}; sh -c {shlex.quote(what)}", module, around)


@dataclass(frozen=True, slots=True)
class Around:
    """What surrounds a step: its deadline, what ends it early, and the word that marks the kernel's log."""

    deadline: Deadline
    abandon: threading.Event
    mark: str


def _told(guest: Guest, line: str, module: str, around: Around) -> Told:
    # A line of the kernel's own log tells where the step ends. The refusal of a module does not name it.
    script = (
        f"( {line} ) < /dev/null; code=$?; printf '<5>%s\\n' {shlex.quote(around.mark)} > /dev/kmsg; "
        f"echo; echo {around.mark}; cat /proc/sys/kernel/tainted; grep -- '^{module} ' /proc/modules; exit $code"
    )
    answer = guest.run(script, around.deadline, abandon=around.abandon)
    output, found, rest = answer.out.decode("utf-8", "replace").rpartition(f"\n{around.mark}\n")
    if not found:
        return Told(answer, None)
    taint, _, modules = rest.partition("\n")
    words = modules.split()
    answer = Answer(answer.code, output.encode(), answer.err, answer.lost)
    holders = tuple(w for w in words[3].split(",") if w and w != "-") if len(words) > 4 else ()
    return Told(
        answer,
        int(taint) if taint.isdigit() else None,
        holders,
        int(words[2]) if len(words) > 2 and words[2].lstrip("-").isdigit() else None,
        words[4] if len(words) > 4 else None,
    )


def read_state(guest: Guest, deadline: Deadline) -> tuple[int, frozenset[str]]:
    """The taint mask and the names of the loaded modules."""
    facts = parse_facts(
        guest.run(
            "echo taint=$(cat /proc/sys/kernel/tainted); echo modules=$(cut -d' ' -f1 /proc/modules)", deadline
        ).text
    )
    taint = facts.get("taint", "")
    if not taint.isdigit():
        raise GuestUnreachable("the guest did not say its taint")
    return int(taint), frozenset(facts.get("modules", "").split())


def elapsed(since: float) -> float:
    return time.monotonic() - since
