"""Build a module: run make in the guest, or in a sandbox on the host that has the guest's own toolchain.

Both return the same `BuildResult`, and put the .ko files at the same places of the module's folder in the guest.
"""

from __future__ import annotations

import contextlib
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
from kmlab.kernel.build.build_tree import parse_config
from kmlab.kernel.build.diagnostics import Diagnostic, parse_diagnostics
from kmlab.kernel.build.explain import build_reason, wants_config
from kmlab.kernel.module.modinfo import LoadOrder, ModInfo, is_signed, load_order, parse_modinfo
from kmlab.kernel.symbols.elf import LARGEST_PRODUCTS
from kmlab.provision.guest import Guest
from kmlab.run.build.source_folder import (
    Manifest,
    folder_in_guest,
    read_folder,
    read_manifest,
    read_source,
    write_manifest,
)

ShowLine = Callable[[str], None]
_MOST_PRODUCTS = 2048
"""The most files that a build hands back."""
_LARGEST_MAKEFILE = 1 << 20
"""Bytes of a Makefile that are read."""
_DEEPEST = 4
"""The most levels of folders that are searched for another Makefile."""
_MOST_TEXT = 8 << 20
"""Bytes of C sources that are read to explain a failed build."""
_SOURCES = (".c", ".h", ".cpp", ".cc")


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The result of a build: log, errors and .ko files."""

    ok: bool
    log: str
    how: str
    diagnostics: tuple[Diagnostic, ...] = ()
    reason: str | None = None
    images: Mapping[str, bytes] = field(default_factory=dict)
    """The .ko files by their path in the module's folder."""
    modules: tuple[tuple[str, ModInfo], ...] = ()
    """Path and .modinfo of each, in the order to load them."""
    outside: tuple[str, ...] = ()
    """The kernel's own modules that must be loaded first."""
    undelivered: Mapping[str, bytes] = field(default_factory=dict)
    """Files that the module's folder in the guest does not have yet, by path."""

    @property
    def paths(self) -> str:
        """Return the modules' paths, for people."""
        return ", ".join(path for path, _ in self.modules) or "no module"

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the modules."""
        return frozenset(info.name for _, info in self.modules)


def build_in_guest(guest: Guest, name: str, source: Path, deadline: Deadline, show_line: ShowLine) -> BuildResult:
    """Run make for the guest's own kernel in it, and bring the .ko files to the host."""
    release = guest.record.release
    # make changes the delivered files, so the record is no longer true.
    delivered = _read_digests(_delivery_record(guest, name))
    _delivery_record(guest, name).unlink(missing_ok=True)
    built = _try_commands(
        source,
        name,
        release,
        lambda command, about: _in_guest(guest, command, about, release, deadline, show_line, source),
    )
    # A module that make did not rebuild still has the signature that it was delivered with.
    ours = [p for p, image in built.images.items() if is_signed(image) and delivered.get(p) == _digest(image)]
    unsigned = _without_signatures({path: built.images[path] for path in ours})
    return replace(built, images={**built.images, **unsigned}, undelivered=unsigned)


def _without_signatures(images: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Return modules without their signatures."""
    if not images:
        return {}
    from kmlab.kernel.signing.signature import strip_signature

    return {path: strip_signature(image) for path, image in images.items()}


def build_in_sandbox(box: Sandbox, source: Path, release: str, deadline: Deadline, show_line: ShowLine) -> BuildResult:
    """Build on the host, without a guest; `deliver` brings modules and programs to the guest later."""
    box = replace(box, release=release)
    mirror(source, box.folder)
    built = _try_commands(
        source,
        box.name,
        release,
        lambda command, about: _in_sandbox(box, command, about, release, deadline, show_line, source),
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
    """The files that a build hands back, up to a limit."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.excess: str | None = None
        """Why the build exceeds the limit: a sentence."""

    def take(self, offered: Mapping[str, int], read: Callable[[str, int], bytes | None]) -> None:
        """Add files: all of them, or none if they exceed the limit. `offered` are the sizes that they claim to have.

        `read` returns up to that many bytes of a file, or None if it is no file any more.
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
            contents = {path: read(path, size) for path, size in new.items()}
            self.files.update({path: content for path, content in contents.items() if content is not None})


def check_folder(source: Path) -> None:
    """Raise ConfigError if the folder has no modules to build. This is called before a guest starts."""
    read_folder(source)
    _build_commands(source, "", "")


def _build_commands(source: Path, name: str, release: str) -> tuple[kbuild.Folder, Sequence[kbuild.BuildCommand]]:
    """Return the kind of the folder, and the make commands that may build it: at least one."""
    texts = {f: _text(source, f) for f in ("Kbuild", *kbuild.MAKEFILES) if (source / f).is_file()}
    about = _with_surroundings(kbuild.inspect_folder(texts), source)
    commands = kbuild.make_commands(about.kind, folder_in_guest(name), release, os.cpu_count() or 1)
    if not commands:
        raise ConfigError(
            f"{printable(str(source))}: no Kbuild file, and no Makefile with obj-m",
            f"give the folder that has one: {printable(str(source / about.below[0]))}"
            if about.below
            else "write a Makefile with `obj-m := NAME.o`, or give the folder that has one",
        )
    return about, commands


def _try_commands(
    source: Path, name: str, release: str, make: Callable[[kbuild.BuildCommand, kbuild.Folder], BuildResult]
) -> BuildResult:
    """Try each make command for such a folder, until one builds modules."""
    about, commands = _build_commands(source, name, release)
    tried: list[BuildResult] = []
    for command in commands:
        tried.append(make(command, about))
        if tried[-1].ok or not about.has_makefile:
            break
    # Users know the messages of the first command; the second only counts if it succeeds.
    return tried[-1] if tried[-1].ok else tried[0]


def _with_surroundings(about: kbuild.Folder, source: Path) -> kbuild.Folder:
    """Add what else about the folder may explain why it does not build."""
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
    resolved = os.path.normpath(os.path.join("/top", os.path.dirname(path), target))
    return target.startswith("/") or not resolved.startswith("/top/")


# --- in the guest --------------------------------------------------------------------------------------------------


def _in_guest(
    guest: Guest,
    command: kbuild.BuildCommand,
    about: kbuild.Folder,
    release: str,
    deadline: Deadline,
    show_line: ShowLine,
    source: Path,
) -> BuildResult:
    argv = ["env", *(f"--unset={n}" for n in kbuild.quiet_environment()), *(f"{n}={v}" for n, v in command.environment)]
    argv += ["LC_ALL=C", *command.argv]
    # The log goes to stderr and, if all is well, the modules to stdout: one round trip for both.
    line = (
        f"cd {shlex.quote(str(command.folder))} || exit 90; {shlex.join(argv)} >&2 || exit $?; "
        "find . \\( -name '*.ko' -o -name modules.order \\) -type f -print0 | tar -cf - --null --files-from=-"
    )
    answer = guest.run(line, deadline, on_output=_show_last_line(show_line))
    if answer.lost:
        raise GuestUnreachable("the guest went away during the build")
    products = _unpack(answer.out) if answer.ok else _Products()
    return _build_result(
        command, about, release, answer.error_text, answer.code, products, source, lambda: read_config(guest, deadline)
    )


def _unpack(archive: bytes) -> _Products:
    """Return the files in an archive from the guest; none if it is no archive."""
    products = _Products()
    try:
        # Never decompress: a few bytes could become any amount.
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as members:
            files = {str(PurePosixPath(member.name)): member for member in members if member.isreg()}
            products.take(
                {path: member.size for path, member in files.items()},
                lambda path, most: _member(members, files[path], most),
            )
    # For a crafted archive, tarfile raises not only TarError but also Python's errors about numbers and names.
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError, LookupError, TypeError, AttributeError):
        return _Products()
    return products


def _member(members: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes | None:
    content = members.extractfile(member)
    return content.read(most) if content is not None else None


def _show_last_line(show_line: ShowLine) -> Callable[[bytes], None]:
    """Return a function that shows the last whole line of a chunk, if it is text."""

    def hear(chunk: bytes) -> None:
        if b"\0" not in chunk:
            lines = chunk.decode("utf-8", "replace").strip().splitlines()
            if lines:
                show_line(printable(lines[-1].strip(), 100))

    return hear


# --- in a sandbox --------------------------------------------------------------------------------------------------


def _in_sandbox(
    box: Sandbox,
    command: kbuild.BuildCommand,
    about: kbuild.Folder,
    release: str,
    deadline: Deadline,
    show_line: ShowLine,
    source: Path,
) -> BuildResult:
    ended = box.run(
        command.argv,
        deadline,
        cwd=command.folder,
        environment=dict(command.environment),
        on_line=lambda line: show_line(printable(line.strip(), 100)),
    )
    command = kbuild.BuildCommand(
        f"{command.how}, in a sandbox on the host", command.argv, command.folder, command.environment
    )
    if ended.limit:
        reason = f"the build used more than {ended.limit} and was stopped: does its Makefile end by itself?"
        return BuildResult(
            False, ended.output, command.how, tuple(parse_diagnostics(ended.output, command.folder)), reason
        )
    products = _Products()
    if ended.code == 0:
        with UntrustedFolder(box.folder) as folder:
            made = {
                path: status.st_size
                for path, status in folder.files()
                if path.endswith(".ko") or PurePosixPath(path).name == "modules.order"
            }
            products.take(made, folder.read)

    def config() -> Mapping[str, str]:
        read = box.run(("cat", _config_of(release)), deadline)
        return parse_config(read.output) if read.code == 0 else {}

    return _build_result(command, about, release, ended.output, ended.code, products, source, config)


def mirror(source: Path, target: Path) -> tuple[int, int]:
    """Make `target` equal to `source`, except for what make left there; return (files copied, files removed).

    Copy only changed files, keep their times, and remove deleted files, so that make rebuilds only what it must.
    """
    manifest = read_folder(source)
    record = target.parent / ".copied" / f"{target.name}.json"
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
                else:
                    folder.put_file(path, read_source(source, path), entry.mode, entry.mtime_ns)
        write_manifest(record, manifest)
    return len([path for path in changed if manifest[path].kind != "folder"]), len(deleted)


def still_delivered(guest: Guest, name: str, deadline: Deadline) -> Mapping[str, str]:
    """Return the digests of the delivered files that the guest still has, by path: an exercise may change some.

    Call it while make runs, so that the answer costs no time.
    """
    delivered = _read_digests(_delivery_record(guest, name))
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
    digests = {path: _digest(content) for path, content in files.items()}
    missing = {path: files[path] for path in sorted(files) if delivered.get(path) != digests[path]}
    if missing:
        record = _delivery_record(guest, name)
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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _delivery_record(guest: Guest, name: str) -> Path:
    """Return the record of the files sent to this guest. Restoring the guest removes it."""
    return guest.files.synced / "built" / f"{name}.json"


def _read_digests(record: Path) -> Mapping[str, str]:
    value = paths.read_json(record)
    return value if isinstance(value, dict) else {}


# --- the built files -----------------------------------------------------------------------------------------------


def _build_result(
    command: kbuild.BuildCommand,
    about: kbuild.Folder,
    release: str,
    log: str,
    code: int | None,
    products: _Products,
    source: Path,
    config: Callable[[], Mapping[str, str]],
) -> BuildResult:
    diagnostics = tuple(parse_diagnostics(log, command.folder))
    if products.excess:
        return BuildResult(False, log, command.how, diagnostics, products.excess)
    images = _modules_of_build(products.files)
    if code == 0 and images:
        try:
            infos = {path: parse_modinfo(image, path) for path, image in images.items()}
            order = load_order(infos.values())
        except ConfigError as error:
            # No argument is wrong: the Makefile made a bad module.
            bad = f"the built module cannot be loaded: {printable(error.message, 300)}"
            return BuildResult(False, log, command.how, diagnostics, bad)
        return BuildResult(True, log, command.how, diagnostics, None, images, _with_paths(infos, order), order.outside)
    options = config() if code and wants_config(log) else None
    reason = build_reason(
        log, code, diagnostics, release, folder=about, sources=read_sources(source), config=options or None
    )
    return BuildResult(False, log, command.how, diagnostics, reason)


def read_sources(source: Path) -> Mapping[str, str]:
    """Read the module's C sources, as far as they may explain a failure; skip files that cannot be read."""
    texts: dict[str, str] = {}
    room = _MOST_TEXT
    for path, entry in read_folder(source).items():
        if entry.kind == "file" and path.endswith(_SOURCES) and 0 < entry.size <= room:
            with contextlib.suppress(ConfigError):
                texts[path] = read_source(source, path, room).decode("utf-8", "replace")
                room -= entry.size
    return texts


def read_config(guest: Guest, deadline: Deadline) -> Mapping[str, str]:
    """Read the options of the guest's kernel from its headers; return none if the headers do not have them."""
    return parse_config(guest.run(f"cat {_config_of(guest.record.release)} 2> /dev/null", deadline).text)


def _config_of(release: str) -> str:
    """Return where a kernel's headers have its .config."""
    return f"/lib/modules/{release}/build/.config"


def _with_paths(infos: Mapping[str, ModInfo], order: LoadOrder) -> tuple[tuple[str, ModInfo], ...]:
    places = {info.name: path for path, info in infos.items()}
    return tuple((places[info.name], info) for info in order.modules)


def _modules_of_build(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the .ko files that this build made: those that a modules.order names, or all if there is none."""
    modules = {path: content for path, content in files.items() if path.endswith(".ko")}
    orders = [content.decode("utf-8", "replace") for path, content in files.items() if path not in modules]
    endings = tuple(re.sub(r"\.o$", ".ko", word) for order in orders for word in order.split())
    made = {p: image for p, image in modules.items() if any(w == p or w.endswith(f"/{p}") for w in endings)}
    return made if orders and made else ({} if orders and not endings else modules)
