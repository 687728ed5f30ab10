"""Commands about files and other programs: cp, ssh-config. They use OpenSSH, and take no lock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kmlab.cli.help import completion
from kmlab.cli.options import Debug, GuestNames, Json, LabFile, open_lab, set_global_options

if TYPE_CHECKING:
    from kmlab.config.lab import Lab


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
    from kmlab.cli import render
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
    from kmlab.cli import render
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
