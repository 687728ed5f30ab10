"""Options that every command shares, such as --lab and --json, and the state of this invocation that they set."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kmlab.config.lab import GuestSpec, Lab
    from kmlab.host import Host
    from kmlab.host.process.command import ProgramRun

LabFile = Annotated[
    Path | None,
    typer.Option("--lab", help="Use this lab.yaml; default: the one here or in a parent folder.", metavar="FILE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Compact = Annotated[bool, typer.Option("--compact", help="With --json: omit the kernel logs and print one line.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show Python tracebacks.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show each program that runs, and the kernel's whole crash log."),
]
Connect = Annotated[
    str | None, typer.Option("--connect", help="Use this libvirt URI instead of the one in lab.yaml.", metavar="URI")
]
GuestNames = Annotated[
    list[str] | None, typer.Argument(help="Guests to use; default: the lab's default guests.", metavar="GUEST")
]
GuestOptions = Annotated[
    list[str] | None,
    typer.Option("--guest", "-g", help="Use this guest; repeat the option for several.", metavar="GUEST"),
]
AllGuests = Annotated[bool, typer.Option("--all", help="Use all guests of the lab.")]
Directory = Annotated[Path, typer.Argument(help="Folder of the module.", metavar="DIR")]


@dataclass(slots=True)
class CliState:
    """Hold the options that decide how this invocation prints."""

    json: bool = False
    debug: bool = False
    verbose: bool = False
    build_host: Callable[[], Host] | None = None
    """Set by `app`, the only module that builds the real Host."""


cli_state = CliState()
"""Module-level, because `app` needs it for an error that ends the command."""


def set_global_options(*, json: bool, debug: bool, verbose: bool = False) -> None:
    """Store the options that every command has. Each command calls this first."""
    cli_state.json, cli_state.debug, cli_state.verbose = json, debug, verbose


def check_compact(compact: bool, json: bool) -> None:
    """Raise ConfigError for `--compact` without `--json`."""
    from kmlab.common.errors import ConfigError

    if compact and not json:
        raise ConfigError("--compact needs --json", "add --json, or remove --compact")


def open_lab(file: Path | None, connect: str | None = None) -> Lab:
    """Read the lab.yaml that a command uses."""
    import dataclasses

    from kmlab.config import lab

    opened = lab.open_lab(Path.cwd(), file)
    return dataclasses.replace(opened, libvirt=connect) if connect else opened


def select_guests(lab: Lab, names: list[str] | None, every: bool = False) -> list[GuestSpec]:
    """Return the guests with these names; without names the lab's default guests."""
    if every:
        return list(lab.guests.values())
    return [lab.guest(name) for name in dict.fromkeys(names or lab.default)]


def real_host() -> Host:
    """Build the real Host, and show the programs that it runs: a failed one always, every one with --verbose."""
    from kmlab.cli.progress import show_program
    from kmlab.host.process.command import observe_programs

    def show(program: ProgramRun) -> None:
        if cli_state.verbose or not program.ok:
            show_program(program)

    assert cli_state.build_host is not None
    observe_programs(show)
    return cli_state.build_host()


def ask_passphrase(path: str) -> str | None:
    """Ask the user for the passphrase of a key, once; return None if stdin is not a terminal."""
    if not sys.stdin.isatty():
        return None
    with _asking:
        if path not in _answers:
            _answers[path] = typer.prompt(f"Passphrase of {path}", hide_input=True, err=True)
        return _answers[path]


_answers: dict[str, str] = {}
"""Module-level, so that one command asks once for each key."""
_asking = threading.Lock()
"""Several guests may need a passphrase at the same time."""
