"""kmlab watch: a module's folder, run on each save."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kmlab.cli.asked import (
    AllGuests,
    Connect,
    Debug,
    Directory,
    GuestOptions,
    Json,
    LabFile,
    open_lab,
    passphrase,
    real_host,
    speak,
)
from kmlab.cli.module import (
    Exercise,
    Fresh,
    Jobs,
    Keep,
    Kernels,
    NoSign,
    Params,
    SignWith,
    Timeout,
    columns_of,
    options_of,
    sign_choice,
)

Exec = Annotated[
    str | None, typer.Option("--exec", help="Run this by sh on each verdict, told of it in KMLAB_….", metavar="CMD")
]


def watch(
    directory: Directory,
    guest: GuestOptions = None,
    every: AllGuests = False,
    kernels: Kernels = None,
    jobs: Jobs = None,
    fresh: Fresh = False,
    keep: Keep = False,
    param: Params = None,
    exercise: Exercise = None,
    timeout: Timeout = None,
    no_sign: NoSign = False,
    sign_with: SignWith = None,
    command: Exec = None,
    lab: LabFile = None,
    connect: Connect = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """As `run`, at once and again on each save, until Ctrl-C."""
    speak(json=json, debug=debug)
    from kmlab import many, provision
    from kmlab import watch as loop
    from kmlab.cli import screen
    from kmlab.host.saves import Saves
    from kmlab.signing import signer_for

    # From the root: the folder that this was started in may be renamed, too.
    file = open_lab(lab, connect).path
    options = options_of(param, exercise, timeout, fresh=fresh, keep=keep, sign=sign_choice(no_sign, sign_with))
    place = Path(os.path.abspath(directory)) if directory.exists() else directory

    def look() -> loop.Watched:
        opened = open_lab(file, connect)
        wanted = opened.module_for(place)
        asked = list(opened.guests) if every else guest or []
        found = many.jobs(opened, [wanted], asked, columns_of(opened, kernels))
        return loop.Watched(opened, wanted, [job.spec for job in found], jobs)

    first = look()
    for spec in first.guests:
        # A passphrase is asked for here, and not in the middle of the picture.
        signer_for(provision.lab_files(first.lab), first.lab.name, spec, options.sign, passphrase)
    with Saves() as saves, screen.face(as_json=json) as face:
        loop.watch(real_host(), look, options, saves, face, command)
