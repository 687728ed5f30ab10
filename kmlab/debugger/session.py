"""Debug a guest with gdb: collect the symbols, open QEMU's stub on a socket of our own, and close it afterwards.

The stub stops the whole machine, so it also works in a guest that hangs. Then the symbols come from this host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ConfigError, GuestUnreachable, LabError
from kmlab.common.events import Deadline, EventSink, Stage, printable
from kmlab.config.lab import Expect, GuestSpec, Lab, Module, Param
from kmlab.config.run_options import Options
from kmlab.debugger.gdb_script import STOP_FUNCTION, LoadedModule, Target, parse_sections, script
from kmlab.debugger.kernel_symbols import parse_symbols, write_symbols
from kmlab.host import Host
from kmlab.host.channel.ssh import Shell
from kmlab.host.process import command
from kmlab.kernel.module.modinfo import ModInfo, format_params, load_order, parse_modinfo
from kmlab.provision import cache, lifecycle
from kmlab.provision.guest import MODULES_FOLDER, Guest, GuestRecord
from kmlab.run import run
from kmlab.run.build.source_folder import folder_in_guest

_PATIENCE = 10.0
_ANSWER = 4.0
"""Seconds for the guest's agent, and again for its sshd, before the guest counts as one that hangs."""
_LOAD_DELAY = 5
"""Seconds of the guest's time between asking for the load and the load, in which the guest is stopped."""


@dataclass(frozen=True, slots=True)
class Session:
    """One gdb session: the arguments of gdb, to be run while the stub is open."""

    argv: tuple[str, ...]
    modules: tuple[str, ...]
    """The modules whose symbols gdb has."""


@contextlib.contextmanager
def attached(
    host: Host, lab: Lab, record: GuestRecord, files: paths.GuestFiles, vmlinux: Path | None, report: EventSink
) -> Iterator[Session]:
    """Open the stub of a running guest, in any state, with the symbols of the modules that are loaded in it."""
    folder = _scratch(files)
    with Stage(report, record.name, "collecting symbols") as stage:
        modules = _loaded_modules(host, record, files, folder)
        stage.detail = ", ".join(module.name for module in modules) or "no module is loaded"
    target = _target(lab, record, files, folder, modules, vmlinux)
    with _stub(host, record, files, target.socket, stop=False):
        yield _session(target, folder, [module.name for module in modules])


def attach(
    host: Host, lab: Lab, spec: GuestSpec, vmlinux: Path | None, report: EventSink
) -> contextlib.AbstractContextManager[Session]:
    """Open the stub of a guest, as `attached` does. Raise LabError if the guest does not run."""
    status = cache.guest_status(lab, spec.name)
    if status.record is None or not status.running:
        raise LabError(f"guest '{spec.name}' is not running", "kmlab up, or kmlab gdb MODULE --at load")
    return attached(host, lab, status.record, status.files, vmlinux, report)


def run_batch(session: Session, commands: Sequence[str], deadline: Deadline) -> command.Completed:
    """Run gdb with these commands, and return what it printed."""
    words = [word for line in commands for word in ("-ex", line)]
    return command.run([*session.argv, "-batch", *words], deadline=deadline, accept=range(256))


@contextlib.contextmanager
def at_load(
    host: Host, lab: Lab, spec: GuestSpec, module: Module, options: Options, vmlinux: Path | None, report: EventSink
) -> Iterator[Session]:
    """Build the module, and open the stub of its guest, which loads the module as soon as gdb lets it go on."""
    built = run.run(host, lab, spec, dataclasses.replace(module, expect=Expect()), options, report)
    if built.outcome != "pass":
        raise LabError(f"{module.name} was not built: {built.title}", f"kmlab build {module.source}")
    with lifecycle.guest_session(host, lab, spec, report, allow_kept_modules=False) as guest:
        files, record = guest.files, guest.record
        folder = _scratch(files)
        images = _built(guest, module, folder)
        order = [info for _, info in images]
        last = order[-1].name
        guest.mark("dirty", "a debugger was attached to it")
        _ask_for_load(guest, module, {**module.params, **options.params}, images)
        target = _target(lab, record, files, folder, (), vmlinux, {module.name: module})
        file = next(folder / f"{info.name}.ko" for info in order if info.name == last)
        target = _stopping(target, last, file)
        with _stub(host, record, files, target.socket, stop=True):
            yield _session(target, folder, [last])


def _stopping(target: Target, name: str, file: Path) -> Target:
    if target.kernel is None and target.vmlinux is None:
        raise LabError(
            f"the guest's kernel has no symbols, so gdb cannot stop in {STOP_FUNCTION}()",
            "the guest must have this host's architecture; or name its vmlinux: --vmlinux FILE",
        )
    return dataclasses.replace(target, stop_at_load=(name, file))


def _session(target: Target, folder: Path, modules: Sequence[str]) -> Session:
    file = folder / "script.gdb"
    paths.write_text(file, script(target), 0o600)
    # A module's file comes from the guest: gdb must run no script that it finds in it.
    safe = ("-iex", "set auto-load off", "-iex", "set debuginfod enabled off")
    return Session(("gdb", "-q", *safe, "-x", str(file)), tuple(modules))


def _scratch(files: paths.GuestFiles) -> Path:
    folder = files.root / "gdb"
    paths.remove_tree(folder)
    return paths.make_folder(folder, 0o700)


def _target(
    lab: Lab,
    record: GuestRecord,
    files: paths.GuestFiles,
    folder: Path,
    modules: Sequence[LoadedModule],
    vmlinux: Path | None,
    sources: dict[str, Module] | None = None,
) -> Target:
    table = paths.checkpoints() / record.checkpoint / "kallsyms"
    symbols = parse_symbols(table.read_text("utf-8", "replace")) if table.exists() else None
    kernel = write_symbols(symbols, folder) if symbols and vmlinux is None and _is_native(record.arch) else None
    known = sources or {name: lab.modules[name] for name in record.ran if name in lab.modules}
    return Target(
        arch=record.arch,
        socket=folder / "socket",
        kernel=kernel,
        kernel_at=symbols.start if symbols else 0,
        vmlinux=vmlinux,
        vmlinux_offset=_offset(vmlinux, symbols.start if symbols else 0) if vmlinux else 0,
        modules=modules,
        sources={folder_in_guest(name): lab.locate(module.source).absolute() for name, module in known.items()},
    )


def _is_native(arch: str) -> bool:
    return lifecycle.arch_of(None) == arch


def _offset(vmlinux: Path, start: int) -> int:
    """Return how far the running kernel is from where it was linked."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        with vmlinux.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            found = table.get_symbol_by_name("_text") if isinstance(table, SymbolTableSection) else None
    except (OSError, ELFError) as error:
        raise ConfigError(f"{vmlinux}: cannot read this vmlinux: {error}", "name the ELF file with symbols") from None
    if not found or not start:
        raise ConfigError(f"{vmlinux}: has no symbol _text", "name the vmlinux with symbols, and not a bzImage")
    return start - int(found[0]["st_value"])


# --- symbols of modules --------------------------------------------------------------------------------------------


def _loaded_modules(host: Host, record: GuestRecord, files: paths.GuestFiles, folder: Path) -> list[LoadedModule]:
    """Return the loaded modules from outside the kernel's tree, as the guest says, or as the last run kept them."""
    with contextlib.ExitStack() as stack:
        try:
            shell = _shell(host, record, files, stack)
            return _ask_for_modules(shell, folder)
        except GuestUnreachable:
            return _kept_modules(files, folder)


def _shell(host: Host, record: GuestRecord, files: paths.GuestFiles, stack: contextlib.ExitStack) -> Shell:
    with contextlib.suppress(GuestUnreachable):
        return stack.enter_context(host.agent(files.agent, Deadline(_ANSWER)))
    if record.port is None:
        raise GuestUnreachable(f"guest '{record.name}' does not answer")
    return stack.enter_context(host.shell(record.port, record.host_key, paths.identity_key(), Deadline(_ANSWER)))


def _ask_for_modules(shell: Shell, folder: Path) -> list[LoadedModule]:
    line = f"grep -l O /sys/module/*/taint 2>/dev/null; find {MODULES_FOLDER} -name '*.ko' -type f"
    answer = shell.run(line, Deadline(_PATIENCE))
    if answer.code is None:
        raise GuestUnreachable("the guest does not answer")
    words = answer.text.splitlines()
    loaded = {word.split("/")[3] for word in words if word.startswith("/sys/module/") and word.count("/") >= 4}
    found = []
    for place in (word for word in words if word.endswith(".ko")):
        name = Path(place).stem.replace("-", "_")
        if name not in loaded:
            continue
        loaded.discard(name)
        sections = shell.run(f"grep . /sys/module/{shlex.quote(name)}/sections/.*", Deadline(_PATIENCE))
        image = shell.run(f"cat {shlex.quote(place)}", Deadline(_PATIENCE))
        if image.ok:
            file = _store(folder, name, image.out)
            found.append(LoadedModule(name, file, parse_sections(sections.text)))
    return found


def _kept_modules(files: paths.GuestFiles, folder: Path) -> list[LoadedModule]:
    """Return the modules that the last run loaded, as it kept them."""
    found = []
    for note in sorted(files.debug.glob("*.json")):
        sections, image = paths.read_json(note), note.with_suffix(".ko")
        if isinstance(sections, dict) and image.is_file():
            file = _store(folder, note.stem, image.read_bytes())
            places = {str(name): at for name, at in sections.items() if isinstance(at, int)}
            found.append(LoadedModule(note.stem, file, places))
    return found


def _store(folder: Path, name: str, image: bytes) -> Path:
    file = folder / f"{name}.ko"
    file.write_bytes(image)
    return file


# --- stopping at the load ------------------------------------------------------------------------------------------


def _built(guest: Guest, module: Module, folder: Path) -> list[tuple[str, ModInfo]]:
    """Bring the built modules to the host; return their paths in the guest, in the order to load them."""
    place = folder_in_guest(module.name)
    answer = guest.run(f"find {shlex.quote(str(place))} -name '*.ko' -type f", Deadline(_PATIENCE))
    infos: dict[str, ModInfo] = {}
    for path in answer.text.splitlines():
        image = guest.run(f"cat {shlex.quote(path)}", Deadline(_PATIENCE))
        info = parse_modinfo(image.out, path)
        _store(folder, info.name, image.out)
        infos[path] = info
    if not infos:
        raise LabError(f"{module.name}: the guest has no built module", f"kmlab build {module.source}")
    order = load_order(list(infos.values()))
    by_name = {info.name: path for path, info in infos.items()}
    return [(by_name[info.name], info) for info in order.modules]


def _ask_for_load(
    guest: Guest, module: Module, params: dict[str, Param], images: Sequence[tuple[str, ModInfo]]
) -> None:
    """Have the guest load the modules after a moment, in which it is stopped."""
    lines = [f"sleep {_LOAD_DELAY}"]
    for number, (path, info) in enumerate(images, start=1):
        own = {param.name for param in info.params}
        wanted = {n: v for n, v in params.items() if n in own or number == len(images)}
        lines += [
            f"modprobe -- {shlex.quote(name)}" for name in info.depends if name not in {i.name for _, i in images}
        ]
        lines.append(f"insmod {shlex.join([path, *format_params(wanted)])}")
    begin = f"systemd-run --quiet --no-block --collect sh -c {shlex.quote('; '.join(lines))}"
    answer = guest.run(begin, Deadline(_PATIENCE))
    if not answer.ok:
        raise LabError(f"the guest cannot load {module.name}: {printable(answer.error_text.strip(), 200)}")


# --- the stub ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _stub(host: Host, record: GuestRecord, files: paths.GuestFiles, socket: Path, *, stop: bool) -> Iterator[None]:
    """Open QEMU's stub on a socket that only this user can reach; afterwards close it, and let the guest go on."""
    paths.check_socket_path(files.root)
    with _monitor(host, record, files) as ask:
        if stop:
            ask("stop")
        ask("gdbserver none")
        said = ask(f"gdbserver unix:{socket},server=on,wait=off")
    if not socket.exists():
        raise LabError(f"QEMU could not open its gdb stub: {printable(said.strip(), 200)}", "kmlab reset")
    try:
        yield
    finally:
        with contextlib.suppress(LabError), _monitor(host, record, files) as ask:
            ask("gdbserver none")
            ask("cont")
        socket.unlink(missing_ok=True)


@contextlib.contextmanager
def _monitor(host: Host, record: GuestRecord, files: paths.GuestFiles) -> Iterator[Callable[[str], str]]:
    with host.hypervisor(record.uri, files.libvirt, Deadline(_PATIENCE)) as hv:
        yield lambda line: hv.monitor(record.domain, line)
