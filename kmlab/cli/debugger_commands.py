"""Commands that debug a guest from outside: gdb."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kmlab.cli.help import completion
from kmlab.cli.options.shared_options import (
    Debug,
    GuestOptions,
    Json,
    LabFile,
    open_lab,
    real_host,
    select_guests,
    set_global_options,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from kmlab.common.events import EventSink
    from kmlab.config.lab import GuestSpec, Lab
    from kmlab.debugger.session import Session

_BATCH_PATIENCE = 600.0
_AT_LOAD = "load"


def gdb(
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of the module, for --at load; default: attach to the guest as it is.",
            metavar="MODULE",
            autocompletion=completion.modules,
        ),
    ] = None,
    guest: GuestOptions = None,
    at: Annotated[
        str | None,
        typer.Option("--at", help="load: build and load MODULE, and stop before its init runs.", metavar="WHEN"),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("-p", "--param", help="With --at load: set a module parameter.", metavar="NAME=VALUE"),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option("--batch", help="Run this gdb command, and end; repeat the option for several.", metavar="CMD"),
    ] = None,
    vmlinux: Annotated[
        Path | None, typer.Option("--vmlinux", help="The kernel's file with debug information.", metavar="FILE")
    ] = None,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Debug a guest's kernel and its modules with gdb.

    gdb stops the whole guest, also one that hangs. When gdb ends, the guest goes on.
    """
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.common.errors import ConfigError
    from kmlab.debugger import session as debugger

    if at not in (None, _AT_LOAD):
        raise ConfigError(f"--at must be {_AT_LOAD}", "kmlab gdb MODULE --at load")
    if at and directory is None:
        raise ConfigError("--at load needs a module", "kmlab gdb MODULE --at load")
    if param and not at:
        raise ConfigError("--param needs --at load", "add --at load")
    if json and not batch:
        raise ConfigError("--json needs --batch", "add --batch CMD")
    opened = open_lab(lab)
    names = guest or (list(opened.module_for(directory).guests or ()) if directory else None)
    spec = select_guests(opened, names)[0]
    with render.reporting() as events:
        session = (
            _at_load(opened, spec, directory, param, vmlinux, events)
            if directory is not None and at
            else debugger.attach(real_host(), opened, spec, vmlinux, events)
        )
        with session as ready:
            code = _run(ready, spec.name, batch, json)
    raise typer.Exit(code)


def _run(session: Session, guest: str, batch: list[str] | None, json: bool) -> int:
    """Run gdb on the terminal, or for its output; return its exit code."""
    from kmlab.cli.output import render
    from kmlab.common.events import Deadline
    from kmlab.debugger.session import run_batch
    from kmlab.host.process import command

    if not json:
        commands = [word for line in batch or () for word in ("-ex", line)]
        argv = [*session.argv, *(["-batch"] if batch else []), *commands]
        return command.interactive(argv, handles_interrupt=True)
    done = run_batch(session, batch or (), Deadline(_BATCH_PATIENCE))
    render.document(
        {
            "schema": "kmlab.gdb/1",
            "guest": guest,
            "modules": list(session.modules),
            "code": done.code,
            "output": done.output,
        }
    )
    return done.code


def _at_load(
    lab: Lab, spec: GuestSpec, directory: Path, param: list[str] | None, vmlinux: Path | None, events: EventSink
) -> AbstractContextManager[Session]:
    import dataclasses

    from kmlab.cli.options.module_options import options_of
    from kmlab.debugger import session

    options = dataclasses.replace(options_of(param, None, None), steps=("build",))
    return session.at_load(real_host(), lab, spec, lab.module_for(directory), options, vmlinux, events)
