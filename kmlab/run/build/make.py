"""Building a module: by make in the guest, or in a sandbox on the host that has the guest's own toolchain.

Both leave the same `Built`, and their .ko files at the same places of the module's folder in the guest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from kmlab.common import paths
from kmlab.common.errors import ConfigError, GuestUnreachable, LabError
from kmlab.common.events import Deadline, printable
from kmlab.host.process.sandbox import Sandbox
from kmlab.host.process.untrusted_folder import UntrustedFolder
from kmlab.kernel.build import kbuild
from kmlab.kernel.build.diagnostics import Diagnostic, parse_diagnostics
from kmlab.kernel.build.explain import build_reason
from kmlab.kernel.module.modinfo import LoadOrder, ModInfo, is_signed, load_order, parse_modinfo
from kmlab.kernel.symbols.elf import LARGEST_PRODUCTS
from kmlab.provision.guest import Guest
from kmlab.run.build.source_folder import (
    Manifest,
    read_folder,
    read_manifest,
    read_source,
    workshop,
    write_manifest,
)

Say = Callable[[str], None]
_MOST_PRODUCTS = 2048
"""Files that are handed back."""
_LARGEST_MAKEFILE = 1 << 20
"""Bytes of one that are looked at."""
_DEEPEST = 4
"""Folders down, at most, that another Makefile is looked for."""


@dataclass(frozen=True, slots=True)
class BuildResult:
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

    @property
    def names(self) -> frozenset[str]:
        """The names of the modules."""
        return frozenset(info.name for _, info in self.modules)


def build_in_guest(guest: Guest, name: str, source: Path, deadline: Deadline, say: Say) -> BuildResult:
    """Run make for the guest's own kernel in it, and bring the .ko files to the host."""
    release = guest.record.release
    # What the guest has is not what was delivered any more.
    known = _read_digests(_sent(guest, name))
    _sent(guest, name).unlink(missing_ok=True)
    built = _first_good(source, name, release, lambda way, about: _in_guest(guest, way, about, release, deadline, say))
    # A module that make left as it was still has the signature that it was delivered with.
    ours = [p for p, image in built.images.items() if is_signed(image) and known.get(p) == _digest(image)]
    bare = _bare({path: built.images[path] for path in ours})
    return replace(built, images={**built.images, **bare}, undelivered=bare)


def _bare(images: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Modules without their signatures."""
    if not images:
        return {}
    from kmlab.kernel.signing.signature import strip_signature

    return {path: strip_signature(image) for path, image in images.items()}


def build_in_sandbox(box: Sandbox, source: Path, release: str, deadline: Deadline, say: Say) -> BuildResult:
    """Build on the host alone, needing no guest; `deliver` then brings one what make left: modules and programs."""
    box = replace(box, release=release)
    mirror(source, box.folder)
    built = _first_good(
        source, box.name, release, lambda way, about: _in_sandbox(box, way, about, release, deadline, say)
    )
    if not built.ok:
        return built
    sources = read_folder(source)
    products = _Products(built.images)
    with UntrustedFolder(box.folder) as folder:
        programs = {
            path: status.st_size
            for path, status in folder.files()
            if status.st_mode & 0o111 and path not in sources and folder.read(path, 4) == b"\x7fELF"
        }
        products.take(programs, folder.read)
    if products.excess:
        return replace(built, ok=False, reason=products.excess, images={}, modules=())
    return replace(built, undelivered=products.files)


class _Products:
    """The files that a build hands back, up to what is taken of one."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.excess: str | None = None
        """Why there is more than is taken: a sentence."""

    def take(self, offered: Mapping[str, int], read: Callable[[str, int], bytes | None]) -> None:
        """More files: all of them, or none where it is too much. `offered` are the sizes that they claim to have.

        `read` gives up to so many bytes of one, or None where it is no file any more.
        """
        new = {path: size for path, size in offered.items() if path not in self.files}
        left = LARGEST_PRODUCTS - sum(map(len, self.files.values()))
        if sum(new.values()) > left:
            limit = f"{LARGEST_PRODUCTS >> 20} MiB"
            self.excess = f"the build left more than {limit} of modules and programs: does its Makefile fill files?"
        elif len(self.files) + len(new) > _MOST_PRODUCTS:
            self.excess = (
                f"the build left more than {_MOST_PRODUCTS} modules and programs: does its Makefile copy them?"
            )
        else:
            found = {path: read(path, size) for path, size in new.items()}
            self.files.update({path: content for path, content in found.items() if content is not None})


def check_folder(source: Path) -> None:
    """ConfigError unless modules could be made of the folder; asked before a guest is started for it."""
    read_folder(source)
    _ways(source, "", "")


def _ways(source: Path, name: str, release: str) -> tuple[kbuild.Folder, Sequence[kbuild.BuildCommand]]:
    """What kind of folder it is, and how make may be called for it: one way at least."""
    texts = {f: _text(source, f) for f in ("Kbuild", *kbuild.MAKEFILES) if (source / f).is_file()}
    about = _with_surroundings(kbuild.inspect_folder(texts), source)
    ways = kbuild.make_commands(about.kind, workshop(name), release, os.cpu_count() or 1)
    if not ways:
        raise ConfigError(
            f"{printable(str(source))}: no Kbuild file, and no Makefile with obj-m",
            f"give the folder that has one: {printable(str(source / about.below[0]))}"
            if about.below
            else "write a Makefile with `obj-m := NAME.o`, or give the folder that has one",
        )
    return about, ways


def _first_good(
    source: Path, name: str, release: str, make: Callable[[kbuild.BuildCommand, kbuild.Folder], BuildResult]
) -> BuildResult:
    """Build in each way that there is for such a folder, until one gives modules."""
    about, ways = _ways(source, name, release)
    tried: list[BuildResult] = []
    for way in ways:
        tried.append(make(way, about))
        if tried[-1].ok or not about.has_makefile:
            break
    # The first way is the one whose words a person knows; the second only counts when it helped.
    return tried[-1] if tried[-1].ok else tried[0]


def _with_surroundings(about: kbuild.Folder, source: Path) -> kbuild.Folder:
    """What else about the folder may explain why it does not build."""
    listed = read_folder(source)
    below = []
    for path in listed:
        place = PurePosixPath(path)
        if place.name in ("Kbuild", "Makefile") and 1 < len(place.parts) <= _DEEPEST and listed[path].kind == "file":
            text = _text(source, path)
            if kbuild.inspect_folder({place.name: text}).kind == "kbuild":
                below.append(str(place.parent))
    out = [(path, e.target) for path, e in listed.items() if e.kind == "link" and _leads_out(path, e.target)]
    names = frozenset(PurePosixPath(path).name for path in listed)
    return replace(about, sources=names, below=tuple(dict.fromkeys(below)), links_out=tuple(out))


def _text(source: Path, makefile: str) -> str:
    return read_source(source, makefile, _LARGEST_MAKEFILE).decode("utf-8", "replace")


def _leads_out(path: str, target: str) -> bool:
    there = os.path.normpath(os.path.join("/top", os.path.dirname(path), target))
    return target.startswith("/") or not there.startswith("/top/")


# --- in the guest --------------------------------------------------------------------------------------------------


def _in_guest(
    guest: Guest, way: kbuild.BuildCommand, about: kbuild.Folder, release: str, deadline: Deadline, say: Say
) -> BuildResult:
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
    products = _unpacked(answer.out) if answer.ok else _Products()
    return _built(way, about, release, answer.error_text, answer.code, products)


def _unpacked(archive: bytes) -> _Products:
    """The files in an archive that the guest made; none where it is no archive."""
    products = _Products()
    try:
        # Without a guess at compression: what a few bytes would become is not to be known.
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as members:
            files = {str(PurePosixPath(member.name)): member for member in members if member.isreg()}
            products.take(
                {path: member.size for path, member in files.items()},
                lambda path, most: _member(members, files[path], most),
            )
    # A crafted archive is not only a TarError to tarfile, but also numbers and names that Python refuses.
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError, LookupError, TypeError, AttributeError):
        return _Products()
    return products


def _member(members: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes | None:
    content = members.extractfile(member)
    return content.read(most) if content is not None else None


def _lines(say: Say) -> Callable[[bytes], None]:
    """`say` the last whole line of what comes, if it is text."""

    def hear(chunk: bytes) -> None:
        if b"\0" not in chunk:
            lines = chunk.decode("utf-8", "replace").strip().splitlines()
            if lines:
                say(printable(lines[-1].strip(), 100))

    return hear


# --- in a sandbox --------------------------------------------------------------------------------------------------


def _in_sandbox(
    box: Sandbox, way: kbuild.BuildCommand, about: kbuild.Folder, release: str, deadline: Deadline, say: Say
) -> BuildResult:
    ended = box.run(
        way.argv,
        deadline,
        cwd=way.folder,
        environment=dict(way.environment),
        on_line=lambda line: say(printable(line.strip(), 100)),
    )
    way = kbuild.BuildCommand(f"{way.how}, in a sandbox on the host", way.argv, way.folder, way.environment)
    if ended.limit:
        reason = f"the build was ended, as it used more than {ended.limit}: does its Makefile end by itself?"
        return BuildResult(False, ended.output, way.how, tuple(parse_diagnostics(ended.output, way.folder)), reason)
    products = _Products()
    if ended.code == 0:
        with UntrustedFolder(box.folder) as folder:
            made = {
                path: status.st_size
                for path, status in folder.files()
                if path.endswith(".ko") or PurePosixPath(path).name == "modules.order"
            }
            products.take(made, folder.read)
    return _built(way, about, release, ended.output, ended.code, products)


def mirror(source: Path, target: Path) -> tuple[int, int]:
    """Make `target` hold what `source` holds, beside what make left there; (files copied, files removed).

    Only what changed is copied, times are kept, and what vanished goes, so that make rebuilds only what it must.
    """
    wanted = read_folder(source)
    record = target.parent / ".copied" / f"{target.name}.json"
    known: Manifest = read_manifest(record) if target.is_dir() else {}
    gone = [path for path, entry in known.items() if (now := wanted.get(path)) is None or now.kind != entry.kind]
    changed = [path for path, entry in wanted.items() if not entry.same(known.get(path))]
    if gone or changed:
        # Cut off in the middle, the next one copies all.
        record.unlink(missing_ok=True)
        with UntrustedFolder(target) as folder:
            for path in gone:
                folder.remove(path)
            for path in sorted(changed):
                entry = wanted[path]
                if entry.kind == "folder":
                    folder.put_folder(path, entry.mode)
                elif entry.kind == "link":
                    folder.put_link(path, entry.target)
                else:
                    folder.put_file(path, read_source(source, path), entry.mode, entry.mtime_ns)
        write_manifest(record, wanted)
    return len([path for path in changed if wanted[path].kind != "folder"]), len(gone)


def still_delivered(guest: Guest, name: str, deadline: Deadline) -> Mapping[str, str]:
    """The digests of what was delivered before and is still so, by path: an exercise may have altered or removed some.

    Asked while make is at work, so that nobody waits for the answer.
    """
    known = _read_digests(_sent(guest, name))
    if not known:
        return {}
    line = f"cd {shlex.quote(str(workshop(name)))} && xargs -0 sha256sum -z --"
    answer = guest.run(line, deadline, data=b"".join(os.fsencode(f"./{path}\0") for path in sorted(known)))
    there = {entry[66:].removeprefix(b"./"): entry[:64].decode() for entry in answer.out.split(b"\0") if entry}
    return {path: digest for path, digest in known.items() if there.get(os.fsencode(path)) == digest}


def deliver(guest: Guest, name: str, files: Mapping[str, bytes], there: Mapping[str, str], deadline: Deadline) -> None:
    """Put what was made on the host into the module's folder in the guest, but for what is there already."""
    digests = {path: _digest(content) for path, content in files.items()}
    missing = {path: files[path] for path in sorted(files) if there.get(path) != digests[path]}
    if missing:
        record = _sent(guest, name)
        record.unlink(missing_ok=True)
        line = f"tar -C {shlex.quote(str(workshop(name)))} -xpf - --no-same-owner"
        answer = guest.run(line, deadline, data=_packed(missing))
        if answer.lost or answer.code is None:
            raise GuestUnreachable("the guest went away: could not take the built modules")
        if not answer.ok:
            raise LabError(f"the guest could not take the built modules: {printable(answer.error_text.strip(), 300)}")
        paths.write_text(record, json.dumps(digests))


def _packed(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.mode, member.size = (0o644 if path.endswith(".ko") else 0o755), len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sent(guest: Guest, name: str) -> Path:
    """The record of what was made on the host and the guest was sent; it goes when the guest is restored."""
    return guest.files.synced / "built" / f"{name}.json"


def _read_digests(record: Path) -> Mapping[str, str]:
    value = paths.read_json(record)
    return value if isinstance(value, dict) else {}


# --- what make left ------------------------------------------------------------------------------------------------


def _built(
    way: kbuild.BuildCommand,
    about: kbuild.Folder,
    release: str,
    log: str,
    code: int | None,
    products: _Products,
) -> BuildResult:
    diagnostics = tuple(parse_diagnostics(log, way.folder))
    if products.excess:
        return BuildResult(False, log, way.how, diagnostics, products.excess)
    images = _made(products.files)
    if code == 0 and images:
        try:
            infos = {path: parse_modinfo(image, path) for path, image in images.items()}
            order = load_order(infos.values())
        except ConfigError as error:
            # Nobody's argument is wrong: it is what the Makefile made.
            reason = f"what the build made cannot be loaded: {printable(error.message, 300)}"
            return BuildResult(False, log, way.how, diagnostics, reason)
        return BuildResult(True, log, way.how, diagnostics, None, images, _with_paths(infos, order), order.outside)
    return BuildResult(False, log, way.how, diagnostics, build_reason(log, code, diagnostics, release, folder=about))


def _with_paths(infos: Mapping[str, ModInfo], order: LoadOrder) -> tuple[tuple[str, ModInfo], ...]:
    places = {info.name: path for path, info in infos.items()}
    return tuple((places[info.name], info) for info in order.modules)


def _made(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The .ko files that this build made: those that some modules.order names, or all if there is none."""
    modules = {path: content for path, content in files.items() if path.endswith(".ko")}
    orders = [content.decode("utf-8", "replace") for path, content in files.items() if path not in modules]
    endings = tuple(re.sub(r"\.o$", ".ko", word) for order in orders for word in order.split())
    made = {p: image for p, image in modules.items() if any(w == p or w.endswith(f"/{p}") for w in endings)}
    return made if orders and made else ({} if orders and not endings else modules)
