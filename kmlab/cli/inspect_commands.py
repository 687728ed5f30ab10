"""Commands about running guests: status, log, ssh, console, cp, ssh-config, device. They take no lock."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kmlab.cli.help import completion
from kmlab.cli.options.shared_options import (
    Debug,
    GuestNames,
    Json,
    LabFile,
    open_lab,
    real_host,
    select_guests,
    set_global_options,
)
from kmlab.common.events import printable

if TYPE_CHECKING:
    from kmlab.common import paths
    from kmlab.config.lab import Lab
    from kmlab.kernel.crash.crash import Crash
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
    from kmlab.cli.output import render
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
    from kmlab.cli.output import render

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
    from kmlab.cli.output import render
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
    from kmlab.cli.output import render
    from kmlab.common.errors import LabError
    from kmlab.host.process import terminal

    _, record, _ = _started(lab, guest)
    if record.tty is None:
        raise LabError(f"guest '{record.name}' has no console of its own", "kmlab reset")
    if json:
        render.document({"schema": "kmlab.console/1", "guest": record.name, "tty": record.tty})
        return
    terminal.attach(record.tty)


OneDevice = Annotated[
    str, typer.Argument(help="Kind with its options, or the name of a device: edu, 'nvme: 64M'.", metavar="DEVICE")
]
RunningGuest = Annotated[str, typer.Argument(help="Running guest.", metavar="GUEST", autocompletion=completion.guests)]


def device_list(guest: OneGuest = None, lab: LabFile = None, json: Json = False, debug: Debug = False) -> None:
    """List the devices that a running guest has from lab.yaml or from `kmlab device add`."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.provision.hot_plug import read_plugged

    _, record, files = _started(lab, guest)
    render.devices(record.name, None, list(read_plugged(files).values()), [], as_json=json)


def device_add(
    guest: RunningGuest, device: OneDevice, lab: LabFile = None, json: Json = False, debug: Debug = False
) -> None:
    """Plug a device into a running guest, also while a run is in progress. Exit with 1 if the kernel reports a bug."""
    set_global_options(json=json, debug=debug)
    _change_devices(guest, device, lab, json, add=True)


def device_remove(
    guest: RunningGuest, device: OneDevice, lab: LabFile = None, json: Json = False, debug: Debug = False
) -> None:
    """Unplug a device of a running guest, also while a run is in progress. Exit with 1 if the kernel reports a bug."""
    set_global_options(json=json, debug=debug)
    _change_devices(guest, device, lab, json, add=False)


def _change_devices(name: str, device: str, file: Path | None, json: bool, *, add: bool) -> None:
    from kmlab.cli.output import render
    from kmlab.common.errors import LabError
    from kmlab.common.events import Stage
    from kmlab.diagnosis.aftermath import findings_after
    from kmlab.provision import hot_plug

    opened, record, files = _started(file, name)
    spec, host = opened.guest(name), real_host()
    done: str | None = None
    crashes: list[Crash] = []
    try:
        doing = f"{'plugging in' if add else 'unplugging'} {printable(device, 60)}"
        with (
            render.reporting() as events,
            findings_after(files.console, crashes),
            Stage(events, record.name, doing),
        ):
            if add:
                done = hot_plug.add_device(host, opened, spec, record, files, device).name
            else:
                done = hot_plug.remove_device(host, spec, record, files, device).name
    except LabError:
        if not crashes:
            raise
    hot_plug.mark_crashed(files, [crash.title for crash in crashes])
    render.devices(record.name, done, list(hot_plug.read_plugged(files).values()), crashes, as_json=json)
    raise typer.Exit(1 if crashes else 0)


def _started(file: Path | None, name: str | None) -> tuple[Lab, GuestRecord, paths.GuestFiles]:
    from kmlab.common.errors import LabError
    from kmlab.provision import cache

    opened = open_lab(file)
    spec = select_guests(opened, [name] if name else None)[0]
    guest_status = cache.guest_status(opened, spec.name)
    if guest_status.record is None or not guest_status.running:
        raise LabError(f"guest '{spec.name}' is not running", "kmlab up")
    return opened, guest_status.record, guest_status.files


def cp(
    places: Annotated[
        list[str],
        typer.Argument(
            help="Files or folders, and where to copy them; GUEST:path is in a guest.",
            metavar="SRC... DST",
            autocompletion=completion.places,
        ),
    ],
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy files to a guest, from one, or between two."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.common.errors import ConfigError, LabError
    from kmlab.host.process import command
    from kmlab.provision import ssh_config

    if len(places) < 2:
        raise ConfigError("cp needs what to copy and where to", "kmlab cp notes.txt debian:/root/")
    opened = open_lab(lab)
    words, guests = [], []
    for place in places:
        guest, path = _split(opened, place)
        guests += [guest] if guest else []
        words.append(f"{ssh_config.alias(guest)}:{path}" if guest else _local(path))
    if not guests:
        raise ConfigError("neither side is in a guest", "write GUEST:path, such as debian:/root/")
    config = ssh_config.write(opened, list(dict.fromkeys(guests)))
    # SFTP: the guest's names are checked here, and no shell of the guest reads them. With -3, no guest reaches another.
    argv = ["scp", "-F", str(config), "-s", "-r", "-3", *(["-q"] if json else []), "--", *words]
    code = command.interactive(argv)
    if code != 0:
        raise LabError(f"scp ended with code {code}", "it says why above; paths in a guest begin at /root")
    if json:
        render.document({"schema": "kmlab.cp/1", "from": places[:-1], "to": places[-1]})


def ssh_config(guests: GuestNames = None, lab: LabFile = None, json: Json = False, debug: Debug = False) -> None:
    """Print an OpenSSH configuration of running guests.

    Without GUEST, it has all guests that run.
    """
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.provision import ssh_config as configuration

    opened = open_lab(lab)
    file = configuration.write(opened, guests)
    text = file.read_text(encoding="utf-8")
    if json:
        render.document({"schema": "kmlab.ssh-config/1", "file": str(file), "text": text})
    else:
        render.print_lines(text.splitlines())


def _split(lab: Lab, place: str) -> tuple[str | None, str]:
    """Return the guest and the path in it, or None and a path of this host. Raise ConfigError for an unknown guest."""
    guest, colon, path = place.partition(":")
    if not colon or "/" in guest or (guest not in lab.guests and os.path.lexists(place)):
        return None, place
    return lab.guest(guest).name, path


def _local(path: str) -> str:
    """Return a path that scp cannot take for an option or for another host. A final slash stays."""
    return os.path.abspath(path) + ("/" if path.endswith("/") and Path(path) != Path("/") else "")
