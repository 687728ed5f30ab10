"""kmlab watch: run a module again on each save."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kmlab.cli.options.module_options import (
    Exercise,
    Fresh,
    Jobs,
    Keep,
    Kernels,
    MakeVariables,
    NoSign,
    Params,
    Root,
    SignWith,
    Timeout,
    columns_of,
    options_of,
    sign_choice,
    with_sources,
)
from kmlab.cli.options.shared_options import (
    AllGuests,
    Connect,
    Debug,
    Directory,
    GuestCpus,
    GuestImage,
    GuestKernel,
    GuestMemory,
    GuestOptions,
    Json,
    LabFile,
    SecureBoot,
    Verbose,
    ask_passphrase,
    open_lab,
    open_lab_for,
    real_host,
    set_global_options,
    settings_of,
)

Exec = Annotated[
    str | None,
    typer.Option(
        "--exec", help="Run this shell command after each verdict; KMLAB_* variables hold the details.", metavar="CMD"
    ),
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
    root: Root = None,
    make: MakeVariables = None,
    no_sign: NoSign = False,
    sign_with: SignWith = None,
    command: Exec = None,
    image: GuestImage = None,
    kernel: GuestKernel = None,
    secure_boot: SecureBoot = False,
    memory: GuestMemory = None,
    cpus: GuestCpus = None,
    lab: LabFile = None,
    connect: Connect = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run a module now and again on each save, until Ctrl-C."""
    set_global_options(json=json, debug=debug, verbose=verbose)
    from kmlab.cli.output import watch_screen
    from kmlab.config.lab import DEFAULTS
    from kmlab.host.process.file_watch import FileWatcher
    from kmlab.provision import lifecycle
    from kmlab.provision.plan.lab_key import signer_for
    from kmlab.run import parallel
    from kmlab.run import watch as loop

    # An absolute path: the working directory may be renamed, too.
    at_first = open_lab_for([directory], lab, settings_of(image, kernel, secure_boot, memory, cpus), connect)
    file = None if at_first.file == DEFAULTS else at_first.path
    options = options_of(param, exercise, timeout, fresh=fresh, keep=keep, sign=sign_choice(no_sign, sign_with))
    options = with_sources(options, root, make)
    folder = Path(os.path.abspath(directory)) if directory.exists() else directory

    def read_lab() -> loop.WatchTarget:
        opened = open_lab(file, connect)
        module = opened.module_for(folder)
        guest_names = list(opened.guests) if every else guest or []
        planned = parallel.jobs(opened, [module], guest_names, columns_of(opened, kernels))
        return loop.WatchTarget(opened, module, [job.spec for job in planned], jobs, root)

    first = read_lab()
    for spec in first.guests:
        # Ask for a passphrase now, not in the middle of the screen.
        signer_for(lifecycle.lab_files(first.lab), first.lab.name, spec, options.sign, ask_passphrase)
    with FileWatcher() as saves, watch_screen.open_view(as_json=json, verbose=verbose) as view:
        loop.watch(real_host(), read_lab, options, saves, view, command)
