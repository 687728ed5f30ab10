"""What every command is asked alike: which lab, JSON or people, tracebacks; and how a command ends."""

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

LabFile = Annotated[
    Path | None, typer.Option("--lab", help="lab.yaml to use; default: here or in a folder above.", metavar="FILE")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Compact = Annotated[bool, typer.Option("--compact", help="With --json: without kernel logs, on one line.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Connect = Annotated[str | None, typer.Option("--connect", help="libvirt URI instead of lab.yaml's.", metavar="URI")]
GuestNames = Annotated[list[str] | None, typer.Argument(help="Guests; default: the lab's.", metavar="GUEST")]
GuestOptions = Annotated[
    list[str] | None, typer.Option("--guest", "-g", help="In this guest; may be repeated.", metavar="GUEST")
]
AllGuests = Annotated[bool, typer.Option("--all", help="All guests of the lab.")]
Directory = Annotated[Path, typer.Argument(help="The module's folder.", metavar="DIR")]


@dataclass(slots=True)
class CliState:
    """How this invocation talks."""

    json: bool = False
    debug: bool = False
    build_host: Callable[[], Host] | None = None
    """Set by `app`, the only one that knows the real one."""


manner = CliState()


def set_global_options(*, json: bool, debug: bool) -> None:
    """Take note of the options that every command has; called first by each."""
    manner.json, manner.debug = json, debug


def check_compact(compact: bool, json: bool) -> None:
    """Raise ConfigError for `--compact` without `--json`."""
    from kmlab.common.errors import ConfigError

    if compact and not json:
        raise ConfigError("--compact says how the JSON of --json is written", "add --json, or leave out --compact")


def open_lab(file: Path | None, connect: str | None = None) -> Lab:
    """The lab that a command is about."""
    import dataclasses

    from kmlab.config import lab

    opened = lab.open_lab(Path.cwd(), file)
    return dataclasses.replace(opened, libvirt=connect) if connect else opened


def chosen(lab: Lab, names: list[str] | None, every: bool = False) -> list[GuestSpec]:
    """The guests that a command is about."""
    if every:
        return list(lab.guests.values())
    return [lab.guest(name) for name in dict.fromkeys(names or lab.default)]


def real_host() -> Host:
    """The world, as `app` builds it."""
    assert manner.build_host is not None
    return manner.build_host()


def passphrase(path: str) -> str | None:
    """Ask the person for the passphrase of a key, once; None where nobody is there to ask."""
    if not sys.stdin.isatty():
        return None
    with _asking:
        if path not in _answers:
            _answers[path] = typer.prompt(f"Passphrase of {path}", hide_input=True, err=True)
        return _answers[path]


_answers: dict[str, str] = {}
_asking = threading.Lock()
"""Several guests may need it at a time."""
