"""Run the commands of a run's steps in the guest: strip, insmod, rmmod, the exercise, and questions to its kernel."""

from __future__ import annotations

import contextlib
import io
import shlex
import tarfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kmlab.common import paths
from kmlab.common.events import Deadline
from kmlab.host.channel.ssh import Answer
from kmlab.kernel.module.load_errors import parse_symbol_owners
from kmlab.kernel.module.proc_modules import (
    KernelState,
    ProcModule,
    has_module_at,
    parse_kernel_state,
    state_files,
)
from kmlab.kernel.module.users import Holder, find_holders, question
from kmlab.provision.guest import Guest
from kmlab.run.build.source_folder import require_ok

_STATE_PATIENCE = 20.0
"""Seconds for a guest that has answered to report its kernel's state."""


def strip(guest: Guest, folder: PurePosixPath, places: Sequence[str], deadline: Deadline) -> dict[str, bytes]:
    """Strip modules of their debug information in the guest, which also removes signatures; return the new files."""
    images = {}
    for path in places:
        place = shlex.quote(str(folder / path))
        answer = guest.run(f"strip --strip-debug {place} && cat {place}", deadline)
        require_ok(answer, "strip the module")
        images[path] = answer.out
    return images


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a step's command in the guest."""

    answer: Answer
    kernel: KernelState | None
    """The kernel's state right after it; None if the guest did not answer any more."""
    line: str = ""

    @property
    def transcript(self) -> str:
        """Return the command, what it said on stderr, and its exit code."""
        ended = f"exit code {self.answer.code}" if self.answer.code is not None else "did not end"
        return f"$ {self.line}\n{self.answer.error_text.rstrip()}\n{ended}\n".replace("\n\n", "\n")

    def listed(self, module: str) -> ProcModule | None:
        """Return the kernel's entry for a module right after the step."""
        return self.kernel.modules.get(module) if self.kernel else None


def load(
    guest: Guest,
    folder: PurePosixPath,
    path: str,
    module: str,
    params: Sequence[str],
    limits: CommandLimits,
    outside: Sequence[str] = (),
    modprobe: bool = False,
) -> CommandResult:
    """Run insmod or modprobe for one module."""
    if modprobe:
        return _run_command(guest, f"modprobe {shlex.join([module, *params])}", limits, module)
    before = "".join(f"modprobe -- {shlex.quote(name)}; " for name in outside)
    line = f"cd {shlex.quote(str(folder))}; {before}insmod {shlex.join([f'./{path}', *params])}"
    return _run_command(guest, line, limits, module)


def modprobe(guest: Guest, line: str, limits: CommandLimits) -> CommandResult:
    """Load a module of the kernel's own with its options, and wait for what udev does about it."""
    words = shlex.join(line.split())
    return _run_command(guest, f"modprobe {words} && {{ udevadm settle --timeout=5; true; }}", limits)


def install(guest: Guest, name: str, top: PurePosixPath, places: Sequence[str], deadline: Deadline) -> None:
    """Put modules where modprobe and udev find them."""
    target = shlex.quote(f"{_INSTALLED}/{name}")
    files = shlex.join(f"./{path}" for path in places)
    line = (
        f"cd {shlex.quote(str(top))} && tree=/lib/modules/$(uname -r) && mkdir -p {_INDEXES} && "
        f'{{ test -e {_INDEXES}/modules.dep || cp -p "$tree"/modules.* {_INDEXES}/; }} && '
        f'mkdir -p "$tree"/{target} && cp {files} "$tree"/{target}/ && depmod'
    )
    require_ok(guest.run(line, deadline), "install the module for modprobe")


def uninstall(guest: Guest, name: str, deadline: Deadline) -> None:
    """Take away what `install` put there."""
    line = (
        f'tree=/lib/modules/$(uname -r) && rm -rf "$tree"/{shlex.quote(f"{_INSTALLED}/{name}")} && '
        f'cp -p {_INDEXES}/modules.* "$tree"/ && rm -rf {_INDEXES}'
    )
    require_ok(guest.run(line, deadline), "remove the module from modprobe's folder")


_INSTALLED = "updates/kmlab"
_INDEXES = "/var/lib/kmlab/depmod"
"""Where depmod's own files are kept meanwhile: to copy them is quicker than to run depmod again."""


def unload_dependencies(guest: Guest, modules: Sequence[str], limits: CommandLimits) -> CommandResult:
    """Run rmmod for modules that were loaded as dependencies, the newest first."""
    line = "; ".join(f"rmmod {shlex.quote(name)}" for name in modules)
    return _run_command(guest, line, limits)


def unload(guest: Guest, module: str, limits: CommandLimits) -> CommandResult:
    """Run rmmod for one module."""
    return _run_command(guest, f"rmmod {shlex.quote(module)}", limits)


def exercise(guest: Guest, folder: PurePosixPath, command: str, module: str, limits: CommandLimits) -> CommandResult:
    """Run the user's own command, as root in the module's folder."""
    environment = f"export KMLAB_MODULE={shlex.quote(module)}"
    return _run_command(guest, f"cd {shlex.quote(str(folder))}; {environment}; sh -c {shlex.quote(command)}", limits)


def collect(guest: Guest, folder: PurePosixPath, script: str, limits: CommandLimits) -> CommandResult:
    """Run the script that reads files, in the module's folder."""
    return _run_command(guest, f"cd {shlex.quote(str(folder))}; {script}", limits)


def compile_program(
    guest: Guest, folder: PurePosixPath, name: str, sources: Mapping[str, str], include: str, deadline: Deadline
) -> Answer:
    """Compile C files to the program `name` in a new folder of the guest, with the guest's compiler."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as members:
        for path, text in sources.items():
            member = tarfile.TarInfo(path)
            content = text.encode("utf-8", "surrogateescape")
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    place, files = shlex.quote(str(folder)), shlex.join(sources)
    options = f"-w -O1 -I {shlex.quote(include)} -o {shlex.quote(name)}"
    line = f"mkdir -p {place} && cd {place} && tar -xf - && gcc {options} {files}"
    return guest.run(line, deadline, data=archive.getvalue())


def check(guest: Guest, line: str, limits: CommandLimits) -> CommandResult:
    """Run a check's shell line, and read the kernel's state after it."""
    return _run_command(guest, line, limits)


@dataclass(frozen=True, slots=True)
class CommandLimits:
    """The limits of a step's command: its deadline, what ends it early, and the mark in the kernel's log."""

    deadline: Deadline
    abandon: threading.Event
    mark: str


def _run_command(guest: Guest, line: str, limits: CommandLimits, module: str | None = None) -> CommandResult:
    answer = guest.run(f"{{ {line}; }} < /dev/null", limits.deadline, abandon=limits.abandon)
    if answer.code is None:
        return CommandResult(answer, None, line)
    # A line in the kernel's own log marks where the step ends, because a refusal does not name the module.
    deadline = Deadline(_STATE_PATIENCE)
    seen = guest.shell.read_files(state_files(module), deadline, mark=limits.mark, abandon=limits.abandon)
    return CommandResult(answer, parse_kernel_state(seen.text), line)


def note_for_debugger(guest: Guest, name: str, image: bytes, sections: Mapping[str, int]) -> None:
    """Keep a loaded module and the places of its sections on the host. Restoring the guest removes them."""
    paths.write_json(guest.files.debug / f"{name}.json", dict(sections))
    with contextlib.suppress(OSError):
        (guest.files.debug / f"{name}.ko").write_bytes(image)


def note_names(guest: Guest, name: str, names: frozenset[str]) -> None:
    """Store the names that existed before a module was loaded, for a command that unloads it later."""
    paths.write_json(_names_file(guest, name), sorted(names))


def names_before(guest: Guest, name: str) -> frozenset[str] | None:
    """Read the names that existed before this module was loaded; None if kmlab did not load it."""
    value = paths.read_json(_names_file(guest, name))
    return frozenset(value) if isinstance(value, list) else None


def _names_file(guest: Guest, name: str) -> Path:
    """Return the file with those names. Restoring the guest removes it."""
    return guest.files.synced / "loaded" / f"{name}.json"


def find_users(guest: Guest, module: str, before: frozenset[str] | None, deadline: Deadline) -> tuple[Holder, ...]:
    """Find who, besides other modules, keeps a module from being unloaded."""
    return find_holders(guest.run(question(module), deadline).out, module, before)


def is_in_memory(guest: Guest, module: str, text: int | None, deadline: Deadline) -> bool:
    """Return whether the kernel still has a module that it does not list: in /sys, or as memory at its code's place."""
    name = f"/sys/module/{module}/sections"
    line = f"cat /proc/vmallocinfo 2> /dev/null; test ! -d {shlex.quote(name)} || echo present"
    answer = guest.run(line, deadline)
    return answer.text.rstrip().endswith("present") or (text is not None and has_module_at(answer.text, text))


def owner_of(guest: Guest, symbol: str, deadline: Deadline) -> str | None:
    """Find who exports a symbol, from the guest's kernel and its headers: a module, `vmlinux`, or None."""
    name = shlex.quote(symbol)
    line = f"cd /lib/modules/$(uname -r) && grep -h -F -w -- {name} build/Module.symvers modules.symbols 2> /dev/null"
    return parse_symbol_owners(guest.run(line, deadline).text).get(symbol)
