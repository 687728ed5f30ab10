"""The commands of a run's steps in the guest: strip, insmod, rmmod, the exercise, and questions to its kernel."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kmlab.common import paths
from kmlab.common.events import Deadline
from kmlab.host.channel.ssh import Answer
from kmlab.kernel.module.load_errors import parse_symbol_owners
from kmlab.kernel.module.proc_modules import KernelState, ProcModule, parse_kernel_state, state_files
from kmlab.kernel.module.users import Holder, find_holders, question
from kmlab.provision.guest import Guest
from kmlab.run.build.source_folder import require_ok

_LOOK_PATIENCE = 20.0
"""Seconds for a guest that has answered to say what its kernel has now."""


def strip(guest: Guest, folder: PurePosixPath, places: Sequence[str], deadline: Deadline) -> dict[str, bytes]:
    """Strip modules of their debug information in the guest, which takes a signature with it; as they are then."""
    found = {}
    for path in places:
        place = shlex.quote(str(folder / path))
        answer = guest.run(f"strip --strip-debug {place} && cat {place}", deadline)
        require_ok(answer, "strip the module")
        found[path] = answer.out
    return found


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a step in the guest came to."""

    answer: Answer
    kernel: KernelState | None
    """What the guest's kernel had right after it; None where it could not be asked any more."""

    def listed(self, module: str) -> ProcModule | None:
        """What the kernel said of a module right after the step."""
        return self.kernel.modules.get(module) if self.kernel else None


def load(
    guest: Guest,
    folder: PurePosixPath,
    path: str,
    module: str,
    params: Sequence[str],
    around: CommandLimits,
    outside: Sequence[str] = (),
) -> CommandResult:
    """insmod one module."""
    before = "".join(f"modprobe -- {shlex.quote(name)}; " for name in outside)
    line = f"cd {shlex.quote(str(folder))}; {before}insmod {shlex.join([f'./{path}', *params])}"
    return _run_command(guest, line, around, module)


def unload(guest: Guest, module: str, around: CommandLimits) -> CommandResult:
    """rmmod one module."""
    return _run_command(guest, f"rmmod {shlex.quote(module)}", around)


def exercise(guest: Guest, folder: PurePosixPath, what: str, module: str, around: CommandLimits) -> CommandResult:
    """The person's own command, as root in the module's folder."""
    environment = f"export KMLAB_MODULE={shlex.quote(module)}"
    return _run_command(guest, f"cd {shlex.quote(str(folder))}; {environment}; sh -c {shlex.quote(what)}", around)


@dataclass(frozen=True, slots=True)
class CommandLimits:
    """What surrounds a step: its deadline, what ends it early, and the word that marks the kernel's log."""

    deadline: Deadline
    abandon: threading.Event
    mark: str


def _run_command(guest: Guest, line: str, around: CommandLimits, module: str | None = None) -> CommandResult:
    answer = guest.run(f"{{ {line}; }} < /dev/null", around.deadline, abandon=around.abandon)
    if answer.code is None:
        return CommandResult(answer, None)
    # A line of the kernel's own log tells where the step ends. The refusal of a module does not name it.
    deadline = Deadline(_LOOK_PATIENCE)
    seen = guest.shell.read_files(state_files(module), deadline, mark=around.mark, abandon=around.abandon)
    return CommandResult(answer, parse_kernel_state(seen.text))


def note_names(guest: Guest, name: str, names: frozenset[str]) -> None:
    """Remember what there was before a module was loaded, for a command that unloads it later."""
    paths.write_json(_noted(guest, name), sorted(names))


def names_before(guest: Guest, name: str) -> frozenset[str] | None:
    """What there was before this module was loaded, if kmlab loaded it."""
    value = paths.read_json(_noted(guest, name))
    return frozenset(value) if isinstance(value, list) else None


def _noted(guest: Guest, name: str) -> Path:
    """As true of this guest alone as what was sent to it."""
    return guest.files.synced / "loaded" / f"{name}.json"


def find_users(guest: Guest, module: str, before: frozenset[str] | None, deadline: Deadline) -> tuple[Holder, ...]:
    """Who besides other modules keeps a module from being unloaded."""
    return find_holders(guest.run(question(module), deadline).out, module, before)


def owner_of(guest: Guest, symbol: str, deadline: Deadline) -> str | None:
    """Who exports a symbol, as the guest's kernel and its headers list it: a module, `vmlinux`, or None."""
    name = shlex.quote(symbol)
    line = f"cd /lib/modules/$(uname -r) && grep -h -F -w -- {name} build/Module.symvers modules.symbols 2> /dev/null"
    return parse_symbol_owners(guest.run(line, deadline).text).get(symbol)
