"""Options that every command shares, such as --lab and --json, and the state of this invocation that they set."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kmlab.cli.help import completion

if TYPE_CHECKING:
    from kmlab.config.default_lab import GuestSettings
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
    list[str] | None,
    typer.Argument(
        help="Guests to use; default: the lab's default guests.", metavar="GUEST", autocompletion=completion.guests
    ),
]
GuestOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--guest",
        "-g",
        help="Use this guest; repeat the option for several.",
        metavar="GUEST",
        autocompletion=completion.guests,
    ),
]
AllGuests = Annotated[bool, typer.Option("--all", help="Use all guests of the lab.")]
Directory = Annotated[
    Path, typer.Argument(help="Folder of the module.", metavar="DIR", autocompletion=completion.modules)
]
# The guest of a folder without lab.yaml.
GuestImage = Annotated[
    str | None,
    typer.Option(
        "--image",
        help="Without lab.yaml: run in this image; default: debian-12.",
        metavar="IMAGE",
        autocompletion=completion.images,
    ),
]
GuestKernel = Annotated[
    str | None,
    typer.Option(
        "--kernel", help="Without lab.yaml: run this kernel.", metavar="KERNEL", autocompletion=completion.kernels
    ),
]
SecureBoot = Annotated[bool, typer.Option("--secure-boot", help="Without lab.yaml: boot with Secure Boot, and sign.")]
GuestMemory = Annotated[
    str | None, typer.Option("--memory", help="Without lab.yaml: memory of the guest, such as 2G.", metavar="SIZE")
]
GuestCpus = Annotated[
    int | None, typer.Option("--cpus", help="Without lab.yaml: CPUs of the guest.", metavar="N", min=1, max=64)
]


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
    """Read the lab.yaml that a command uses. Without one, return the lab of defaults that an earlier command used."""
    from kmlab.config import default_lab, lab

    found = file or lab.find_lab(Path.cwd())
    known = None if found else default_lab.find_default_lab(Path.cwd())
    return _with_connection(known or lab.open_lab(Path.cwd(), found), connect)


def settings_of(
    image: str | None, kernel: str | None, secure_boot: bool, memory: str | None, cpus: int | None
) -> GuestSettings:
    """Return what the command line says about the guest of a folder without lab.yaml."""
    from kmlab.config.default_lab import parse_settings

    return parse_settings(image, kernel, memory, cpus, secure_boot)


def open_lab_for(
    folders: Iterable[Path], file: Path | None, settings: GuestSettings, connect: str | None = None
) -> Lab:
    """Read the lab.yaml that a run uses. Without one, use a lab of defaults if one of `folders` is a module's."""
    from kmlab.common.errors import ConfigError
    from kmlab.common.events import printable
    from kmlab.config import default_lab, lab

    here = Path.cwd()
    found = file or lab.find_lab(here)
    if found is not None:
        if settings.options:
            raise ConfigError(
                f"{printable(str(found))} describes the guests: {settings.options[0]} is for a folder without lab.yaml",
                "change the guest in lab.yaml, or choose another one with --guest",
            )
        return _with_connection(lab.open_lab(here, found), connect)
    tried = list(folders)
    if not any(map(default_lab.holds_module, tried)):
        raise lab.no_lab(here, f"name a folder with a Makefile or a Kbuild file: {printable(str(tried[0]))} has none")
    return _with_connection(use_default_lab(settings), connect)


def use_default_lab(settings: GuestSettings) -> Lab:
    """Return the lab of defaults of this folder, and say so in one line."""
    from kmlab.cli.output import render
    from kmlab.config import default_lab

    made = default_lab.default_lab(Path.cwd(), settings)
    default_lab.remember(made, settings)
    (guest,) = made.guests.values()
    size = f"{guest.memory / 2**30:g}G"
    extra = "".join(
        [f", kernel {guest.kernel}" if guest.kernel != "default" else "", ", Secure Boot" if guest.secure_boot else ""]
    )
    render.note(
        f"no lab.yaml here: using a guest with defaults ({guest.image}, {guest.cpus} CPUs, {size}{extra}); "
        "`kmlab init` writes a lab.yaml"
    )
    return made


def _with_connection(opened: Lab, connect: str | None) -> Lab:
    import dataclasses

    from kmlab.config.lab import local_uri

    return dataclasses.replace(opened, libvirt=local_uri(connect, "--connect")) if connect else opened


def select_guests(lab: Lab, names: list[str] | None, every: bool = False) -> list[GuestSpec]:
    """Return the guests with these names; without names the lab's default guests."""
    if every:
        return list(lab.guests.values())
    return [lab.guest(name) for name in dict.fromkeys(names or lab.default)]


def real_host() -> Host:
    """Build the real Host, and show the programs that it runs: a failed one always, every one with --verbose."""
    from kmlab.cli.output.progress import show_program
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
