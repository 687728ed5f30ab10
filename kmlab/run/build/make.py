"""Build a module: run make in the guest, or in a sandbox on the host that has the guest's own toolchain.

Both return the same `BuildResult`, and put the .ko files at the same places of the module's folder in the guest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import posixpath
import re
import shlex
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from kmlab.common import paths
from kmlab.common.errors import ConfigError, GuestUnreachable
from kmlab.common.events import Deadline, printable
from kmlab.host.process.sandbox import Sandbox
from kmlab.host.process.untrusted_folder import UntrustedFolder
from kmlab.kernel.build import kbuild
from kmlab.kernel.build.build_tree import parse_config
from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.build.explain import build_reason
from kmlab.kernel.module.modinfo import is_signed
from kmlab.provision.guest import Guest
from kmlab.run.build.build_place import Place, Ran, config_of, diagnostics_of, explain, read_config
from kmlab.run.build.delivery import copy_record, delivery_record, digest, mirror, read_digests
from kmlab.run.build.dkms_build import build_with_dkms
from kmlab.run.build.products import BuildResult, Products, modules_of_build, ordered_modules
from kmlab.run.build.request import BuildRequest, missing_programs
from kmlab.run.build.source_folder import folder_in_guest, read_folder, read_source
from kmlab.run.build.source_tree import SourceTree

ShowLine = Callable[[str], None]
_LARGEST_MAKEFILE = 1 << 20
"""Bytes of a Makefile that are read."""
_DEEPEST = 4
"""The most levels of folders that are searched for another Makefile."""
_COMPILED = re.compile(r"^[ \t]+(?:CC|LD|AR|MODPOST|HOSTCC|RUSTC)\b", re.MULTILINE)
"""What kbuild says of each step that it takes."""
_INSTALLING = re.compile(
    r"^make(?:\[\d+\])?: \*\*\* \[(?:\S+:\d+: )?"
    r"(?:(?:un)?install\w*|\w+[_-]install|(?:re|in)?load|insmod|depmod)\] Error",
    re.MULTILINE,
)
"""What make says when a target that only puts away the built modules fails."""
_WITH_COMPILER = """\
config=$1
shift
if grep -q '^CONFIG_CC_IS_CLANG=y' "$config" 2> /dev/null; then
	version=$(sed -n 's/^CONFIG_CLANG_VERSION=\\([0-9]*\\)[0-9]\\{4\\}$/\\1/p' "$config")
	if command -v "clang-$version" > /dev/null && command -v "ld.lld-$version" > /dev/null; then
		set -- "$@" "LLVM=-$version"
	else
		set -- "$@" LLVM=1
	fi
fi
exec "$@"
"""
"""Runs make with clang if the kernel was built with it (Documentation/kbuild/llvm.rst)."""


def build_in_guest(guest: Guest, request: BuildRequest, deadline: Deadline, show_line: ShowLine) -> BuildResult:
    """Run make for the guest's own kernel in it, and bring the .ko files to the host."""
    # make changes the delivered files, so the record is no longer true.
    record = delivery_record(guest, request.name)
    delivered = read_digests(record)
    record.unlink(missing_ok=True)
    built = _build(_InGuest(guest, request, deadline, show_line), request, guest.record.release)
    # A module that make did not rebuild still has the signature that it was delivered with.
    ours = [p for p, image in built.images.items() if is_signed(image) and delivered.get(p) == digest(image)]
    unsigned = _without_signatures({path: built.images[path] for path in ours})
    return replace(built, images={**built.images, **unsigned}, undelivered=unsigned)


def _without_signatures(images: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Return modules without their signatures."""
    if not images:
        return {}
    from kmlab.kernel.signing.signature import strip_signature

    return {path: strip_signature(image) for path, image in images.items()}


def build_in_sandbox(
    box: Sandbox, request: BuildRequest, release: str, deadline: Deadline, show_line: ShowLine
) -> BuildResult:
    """Build on the host, without a guest; `deliver` brings modules and programs to the guest later."""
    box = replace(box, release=release)
    mirror(request.tree.root, box.folder, str(request.tree.below))
    place = _InSandbox(box, release, deadline, show_line)
    built = _build(place, request, release)
    if not built.ok:
        return built
    sources = request.tree.manifest()
    products = Products(built.images)
    with UntrustedFolder(box.folder) as folder:
        programs = {
            path: status.st_size
            for path, status in folder.files()
            if path not in sources and _is_for_the_guest(folder, path, status.st_mode)
        }
        products.take(programs, folder.read)
    if products.excess:
        return replace(built, ok=False, reason=products.excess, images={}, modules=())
    return replace(built, undelivered=products.files)


def _is_for_the_guest(folder: UntrustedFolder, path: str, mode: int) -> bool:
    """Return whether a file that the build left is a program, or what gcov must know of an object file."""
    return path.endswith(".gcno") or bool(mode & 0o111 and folder.read(path, 4) == b"\x7fELF")


def check_folder(source: Path, prepare: str | None = None) -> None:
    """Raise ConfigError if the folder has no modules to build. This is called before a guest starts."""
    read_folder(source)
    _build_commands(BuildRequest("", SourceTree(source), prepare=prepare), "")


def _build_commands(request: BuildRequest, release: str) -> tuple[kbuild.Folder, Sequence[kbuild.BuildCommand]]:
    """Return the kind of the folder, and the make commands that may build it: at least one."""
    source = request.tree.folder
    texts = {f: _text(source, f) for f in ("Kbuild", *kbuild.MAKEFILES) if (source / f).is_file()}
    about = _with_surroundings(kbuild.inspect_folder(texts), request.tree)
    if about.kind == "none" and (request.prepare or request.uses_dkms):
        about = replace(about, kind="wrapper", has_makefile=True)
    jobs = request.make.jobs or os.cpu_count() or 1
    about_make = (request.make.variables, request.make.target, about.serial)
    commands = kbuild.make_commands(about.kind, request.folder, release, jobs, *about_make)
    if not commands:
        raise ConfigError(
            f"{printable(str(source))}: no Kbuild file, and no Makefile with obj-m",
            f"give the folder that has one: {printable(str(source / about.below[0]))}"
            if about.below
            else "write a Makefile with `obj-m := NAME.o`, or give the folder that has one",
        )
    return about, commands


def _build(place: Place, request: BuildRequest, release: str) -> BuildResult:
    """Prepare the folder, then try each way to build it until one builds modules; else return what got furthest."""
    about, commands = _build_commands(request, release)
    if request.prepare and (failed := _prepare(place, request, about, release)):
        return failed
    if request.uses_dkms:
        return build_with_dkms(place, request, about, release)
    tried: list[BuildResult] = []
    for command in _with_serial(commands, tried):
        tried.append(_make(place, request, command, about, release))
        if tried[-1].ok:
            return _with_programs(place, request, commands, tried[-1])
        if not about.has_makefile:
            break
    # Of equals the first: users know its messages.
    return max(tried, key=_progress)


def _with_serial(
    commands: Sequence[kbuild.BuildCommand], tried: Sequence[BuildResult]
) -> Iterator[kbuild.BuildCommand]:
    """Yield the commands, and make's own once more with one job if it failed over no error of the sources."""
    for command in commands:
        yield command
        jobs = next((word for word in command.argv if re.fullmatch(r"-j[0-9]+", word)), "-j1")
        if command.how != "kbuild" and jobs != "-j1" and not _has_errors(tried[-1].diagnostics):
            yield replace(command, argv=tuple("-j1" if word == jobs else word for word in command.argv))


def _progress(built: BuildResult) -> tuple[int, bool]:
    """Return how far a failed build got: how much it compiled, and whether it can say what is wrong."""
    return len(_COMPILED.findall(built.log)), bool(built.diagnostics)


def _prepare(place: Place, request: BuildRequest, about: kbuild.Folder, release: str) -> BuildResult | None:
    """Run the user's own command before make, once for each state of the sources; return its failure."""
    assert request.prepare is not None
    state = _digest_of(request, release)
    if paths.read_json(place.prepared) == state:
        return None
    place.prepared.unlink(missing_ok=True)
    build = f"/lib/modules/{release}/build"
    environment = (("PWD", str(request.folder)), ("KDIR", build), ("KVER", release))
    command = kbuild.BuildCommand("prepare", ("sh", "-c", request.prepare), request.folder, environment)
    ran = place.run(command)
    if ran.code == 0:
        paths.write_json(place.prepared, state)
        return None
    diagnostics = diagnostics_of(ran.log, request)
    reason = ran.excess or build_reason(ran.log, ran.code, diagnostics, release, folder=about)
    what = f"prepare: {reason}" if reason else f"`{printable(request.prepare, 200)}` ended with {ran.code}"
    return BuildResult(False, ran.log, command.how + place.suffix, diagnostics, what)


def _digest_of(request: BuildRequest, release: str) -> str:
    sources = sorted((path, repr(entry)) for path, entry in request.tree.manifest().items())
    return hashlib.sha256(json.dumps([request.prepare, release, sources]).encode("utf-8", "surrogatepass")).hexdigest()


def _with_programs(
    place: Place, request: BuildRequest, commands: Sequence[kbuild.BuildCommand], built: BuildResult
) -> BuildResult:
    """Have make build the programs that the exercise names, as far as the build has not left them."""
    if not request.exercise or built.how.startswith("its own make"):
        return built
    own = next((command for command in commands if command.how == "its own make"), None)
    below, texts = request.tree.folder, _words_of_exercise(request)
    missing = missing_programs(texts, read_folder(below), [str(PurePosixPath(p).name) for p in built.images])
    if own is None or not missing:
        return built
    folders = dict.fromkeys(posixpath.dirname(path) for path in missing if "/" in path)
    ways = [own, *(replace(own, argv=(*own.argv, path)) for path in missing)]
    ways += [replace(own, argv=(*own.argv, "-C", folder)) for folder in folders]
    log = built.log
    for way in ways:
        probe = shlex.join(["test", "-e"]) + " " + " -a -e ".join(map(shlex.quote, missing))
        script = f"{probe} || {{ {shlex.join(way.argv)}; {probe}; }}"
        ran = place.run(replace(way, argv=("sh", "-c", script)))
        log += ran.log
        if ran.code == 0:
            break
    return replace(built, log=log)


def _words_of_exercise(request: BuildRequest) -> str:
    """Return the exercise, and the text of the scripts of the folder that it names."""
    assert request.exercise is not None
    texts, folder = [request.exercise], request.tree.folder
    for word in request.exercise.split():
        name = word.strip("'\";&|").removeprefix("./")
        with contextlib.suppress(ConfigError, OSError):
            if name and not name.startswith(("/", "..")) and (folder / name).is_file():
                text = _text(folder, name)
                texts += [text] if text.startswith("#!") or name.endswith(".sh") else []
    return "\n".join(texts)


def _with_surroundings(about: kbuild.Folder, tree: SourceTree) -> kbuild.Folder:
    """Add what else about the folder may explain why it does not build."""
    source = tree.folder
    listed = read_folder(source)
    below = []
    for path in listed:
        place = PurePosixPath(path)
        if place.name in ("Kbuild", "Makefile") and 1 < len(place.parts) <= _DEEPEST and listed[path].kind == "file":
            text = _text(source, path)
            if kbuild.inspect_folder({place.name: text}).kind == "kbuild":
                below.append(str(place.parent))
    out = [(path, e.target) for path, e in listed.items() if e.kind == "link" and _leads_out(tree, path, e.target)]
    names = frozenset(PurePosixPath(path).name for path in (tree.manifest() if tree.levels else listed))
    return replace(
        about,
        sources=names,
        below=tuple(dict.fromkeys(below)),
        links_out=tuple(out),
        above=tree.levels,
        not_sent=tree.refused or None,
    )


def _text(source: Path, makefile: str) -> str:
    return read_source(source, makefile, _LARGEST_MAKEFILE).decode("utf-8", "replace")


def _leads_out(tree: SourceTree, path: str, target: str) -> bool:
    top = "/top" + "".join(f"/{number}" for number in range(tree.levels))
    resolved = os.path.normpath(os.path.join(top, os.path.dirname(path), target))
    return target.startswith("/") or not resolved.startswith("/top/")


# --- in the guest --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _InGuest:
    """A build in the guest itself."""

    guest: Guest
    request: BuildRequest
    deadline: Deadline
    show_line: ShowLine
    suffix: str = ""

    @property
    def arch(self) -> str:
        return self.guest.record.arch

    @property
    def prepared(self) -> Path:
        return self.guest.files.synced / "prepared" / f"{self.request.name}.json"

    def run(self, command: kbuild.BuildCommand) -> Ran:
        argv = ["env", *(f"--unset={n}" for n in kbuild.quiet_environment())]
        argv += [*(f"{n}={v}" for n, v in command.environment), "LC_ALL=C", *command.argv]
        # The log goes to stderr and the modules to stdout: one round trip for both.
        line = (
            f"cd {shlex.quote(str(command.folder))} || exit 90; {shlex.join(argv)} >&2; code=$?; "
            f"cd {shlex.quote(str(folder_in_guest(self.request.name)))} || exit 90; "
            "find . \\( -name '*.ko' -o -name modules.order \\) -type f -print0 | tar -cf - --null --files-from=-; "
            "exit $code"
        )
        answer = self.guest.run(line, self.deadline, on_output=_show_last_line(self.show_line))
        if answer.lost:
            raise GuestUnreachable("the guest went away during the build")
        products = Products() if answer.code is None else _unpack(answer.out)
        return Ran(answer.error_text, answer.code, products)

    def read_config(self) -> Mapping[str, str]:
        return read_config(self.guest, self.deadline)


def _unpack(archive: bytes) -> Products:
    """Return the files in an archive from the guest; none if it is no archive."""
    products = Products()
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
        return Products()
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


@dataclass(frozen=True, slots=True)
class _InSandbox:
    """A build in a sandbox on the host."""

    box: Sandbox
    release: str
    deadline: Deadline
    show_line: ShowLine
    suffix: str = ", in a sandbox on the host"

    @property
    def arch(self) -> str:
        return os.uname().machine

    @property
    def prepared(self) -> Path:
        return copy_record(self.box.folder).with_suffix(".prepared")

    def run(self, command: kbuild.BuildCommand) -> Ran:
        ended = self.box.run(
            command.argv,
            self.deadline,
            cwd=command.folder,
            environment=dict(command.environment),
            on_line=lambda line: self.show_line(printable(line.strip(), 100)),
        )
        products = Products()
        if ended.limit:
            reason = f"the build used more than {ended.limit} and was stopped: does its Makefile end by itself?"
            return Ran(ended.output, ended.code, products, reason)
        if ended.code is not None:
            with UntrustedFolder(self.box.folder) as folder:
                made = {
                    path: status.st_size
                    for path, status in folder.files()
                    if path.endswith(".ko") or PurePosixPath(path).name == "modules.order"
                }
                products.take(made, folder.read)
        return Ran(ended.output, ended.code, products)

    def read_config(self) -> Mapping[str, str]:
        read = self.box.run(("cat", config_of(self.release)), self.deadline)
        return parse_config(read.output) if read.code == 0 else {}


# --- the built files -----------------------------------------------------------------------------------------------


def _make(
    place: Place, request: BuildRequest, command: kbuild.BuildCommand, about: kbuild.Folder, release: str
) -> BuildResult:
    """Run make in one way, and explain how it ended."""
    argv = command.argv
    if not {"LLVM", "CC"} & set(request.make.variables):
        argv = ("sh", "-c", _WITH_COMPILER, "sh", config_of(release), *argv)
    ran = place.run(replace(command, argv=argv))
    log, code, how = ran.log, ran.code, command.how + place.suffix
    diagnostics = diagnostics_of(log, request)
    if ran.excess or ran.products.excess:
        return BuildResult(False, log, how, diagnostics, ran.excess or ran.products.excess)
    images = modules_of_build(ran.products.files)
    if images and (code == 0 or _only_installing_failed(log, diagnostics)):
        try:
            modules, outside = ordered_modules(images)
        except ConfigError as error:
            # No argument is wrong: the Makefile made a bad module.
            bad = f"the built module cannot be loaded: {printable(error.message, 300)}"
            return BuildResult(False, log, how, diagnostics, bad)
        return BuildResult(True, log, how, diagnostics, None, images, modules, outside)
    return BuildResult(False, log, how, diagnostics, explain(place, request, ran, diagnostics, about, release))


def _only_installing_failed(log: str, diagnostics: Sequence[Diagnostic]) -> bool:
    """Return whether make built everything and failed at putting it away, where a sandbox has no place."""
    return _INSTALLING.search(log) is not None and not _has_errors(diagnostics)


def _has_errors(diagnostics: Sequence[Diagnostic]) -> bool:
    """Return whether the compiler found an error in a source."""
    return any(each.severity == "error" and each.line for each in diagnostics)
