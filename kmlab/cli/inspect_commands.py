"""Commands that inspect or enter guests: status, log, ssh, console. They take no lock."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kmlab.cli.help import completion
from kmlab.cli.options import Debug, GuestNames, Json, LabFile, open_lab, select_guests, set_global_options

if TYPE_CHECKING:
    from pathlib import Path

    from kmlab.common import paths
    from kmlab.config.lab import Lab
    from kmlab.provision.guest import GuestRecord

_PATIENCE = 3600.0
"""Seconds for a command whose output is printed as JSON."""

OneGuest = Annotated[
    str | None,
    typer.Argument(
        help="Guest to use; default: the lab's default guest.", metavar="GUEST", autocompletion=completion.guests
    ),
]


def status(guests: GuestNames = None, lab: LabFile = None, json: Json = False, debug: Debug = False) -> None:
    """Show each guest's state and kernel, and the accelerator. The accelerator comes with the reason for it."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli import render
    from kmlab.provision import cache
    from kmlab.provision.plan.plan import check_guest

    opened = open_lab(lab)
    names = [spec.name for spec in select_guests(opened, guests)] if guests else cache.guest_names(opened)
    for spec in opened.guests.values():
        check_guest(opened, spec)
    render.statuses(opened, [cache.guest_status(opened, name) for name in names], as_json=json)


def log(
    guest: OneGuest = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines.")] = False,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a guest's kernel log since its start. kmlab reads it from the guest's console, on the host."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli import render

    _, record, files = _started(lab, guest)
    render.kernel_log(files.console, record.name, follow=follow, as_json=json)


def ssh(
    guest: OneGuest = None,
    command: Annotated[
        list[str] | None, typer.Argument(help="Run this command instead of a shell.", metavar="-- CMD")
    ] = None,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Open a root shell in a guest. With a command, run it and exit with its code; --json prints its output."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli import render
    from kmlab.common import paths
    from kmlab.common.errors import LabError
    from kmlab.common.events import Deadline
    from kmlab.host.channel.ssh import client_argv
    from kmlab.host.process import command as programs

    words = list(command or [])
    if guest is not None and "--" in sys.argv and sys.argv[sys.argv.index("--") + 1 :] == [guest, *words]:
        words, guest = [guest, *words], None  # kmlab ssh -- CMD: in the default guest
    _, record, files = _started(lab, guest)
    if record.port is None:
        raise LabError(f"guest '{record.name}' has no network: ssh cannot reach it", "kmlab console")
    argv = client_argv(record.port, files.known_hosts, paths.identity_key(), words)
    if not json:
        programs.become(argv)
    done = programs.run(argv, deadline=Deadline(_PATIENCE), accept=range(256))
    render.document({"schema": "kmlab.ssh/1", "guest": record.name, "code": done.code, "output": done.output})
    raise typer.Exit(done.code)


def console(guest: OneGuest = None, lab: LabFile = None, json: Json = False, debug: Debug = False) -> None:
    """Open a login that works without a network. Leave it with Ctrl-].

    With --json, print the console's device instead.
    """
    set_global_options(json=json, debug=debug)
    from kmlab.cli import render
    from kmlab.common.errors import LabError
    from kmlab.host.process import terminal

    _, record, _ = _started(lab, guest)
    if record.tty is None:
        raise LabError(f"guest '{record.name}' has no console of its own", "kmlab reset")
    if json:
        render.document({"schema": "kmlab.console/1", "guest": record.name, "tty": record.tty})
        return
    terminal.attach(record.tty)


def _started(file: Path | None, name: str | None) -> tuple[Lab, GuestRecord, paths.GuestFiles]:
    from kmlab.common.errors import LabError
    from kmlab.provision import cache

    opened = open_lab(file)
    spec = select_guests(opened, [name] if name else None)[0]
    guest_status = cache.guest_status(opened, spec.name)
    if guest_status.record is None or not guest_status.running:
        raise LabError(f"guest '{spec.name}' is not running", "kmlab up")
    return opened, guest_status.record, guest_status.files
