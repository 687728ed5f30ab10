"""Commands about kernels that kmlab builds: kernel build, list, config, prune, export and import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kmlab.cli.options.shared_options import Debug, Json, LabFile, Verbose, open_lab, real_host, set_global_options

KernelWords = Annotated[
    str, typer.Argument(help="A flavour, or a version with a flavour: debug, 6.12:debug, kcsan.", metavar="KERNEL")
]
GuestOption = Annotated[
    str | None,
    typer.Option("--guest", "-g", help="Build it for this guest; default: the lab's default guest.", metavar="GUEST"),
]
BuiltKey = Annotated[
    str, typer.Argument(help="The kernel's key in `kmlab kernel list`; a prefix is enough.", metavar="KEY")
]


def kernel_build(
    kernel: KernelWords = "debug",
    guest: GuestOption = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Look for newer sources in the archive first.")] = False,
    lab: LabFile = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Build a kernel from the distribution's signed sources. An interrupted build goes on where it stopped."""
    set_global_options(json=json, debug=debug, verbose=verbose)
    from kmlab.cli.output import render
    from kmlab.provision.kernels import built_kernel

    opened, host = open_lab(lab), real_host()
    plan, request = built_kernel.plan_build(host, opened, opened.guest(guest or opened.default[0]), kernel)
    with render.reporting() as events:
        record = built_kernel.ensure_built_kernel(host, plan, request, events, refresh=refresh)
    render.built_kernels([record], as_json=json)


def kernel_list(lab: LabFile = None, json: Json = False, debug: Debug = False) -> None:
    """List the kernels that kmlab has built, and the flavours that it can build."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.config.kernel_flavours import flavour_names, load_flavour
    from kmlab.config.lab import find_lab
    from kmlab.provision.kernels import built_kernel

    file = lab or find_lab(Path.cwd())
    folder = file.parent if file else None
    flavours = [load_flavour(name, folder) for name in flavour_names(folder)]
    render.built_kernels(built_kernel.list_kernels(), flavours, as_json=json)


def kernel_config(
    kernel: KernelWords = "debug",
    guest: GuestOption = None,
    lab: LabFile = None,
    debug: Debug = False,
) -> None:
    """Print the options of a kernel: all of them if it is built, otherwise those that kmlab asks for."""
    set_global_options(json=False, debug=debug)
    from kmlab.cli.output import render
    from kmlab.provision.kernels import built_kernel

    opened, host = open_lab(lab), real_host()
    plan, request = built_kernel.plan_build(host, opened, opened.guest(guest or opened.default[0]), kernel)
    render.print_lines(built_kernel.read_config(plan, request).splitlines())


def kernel_prune(json: Json = False, debug: Debug = False) -> None:
    """Remove unfinished builds, and kernels that no cached base contains."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.provision.kernels import kernel_store

    removed, freed = kernel_store.prune()
    render.pruned(removed, freed, as_json=json)


def kernel_export(
    key: BuiltKey,
    file: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a built kernel to one file, for another machine or a CI cache."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.provision.kernels import kernel_store

    record = kernel_store.export_kernel(key, file)
    render.built_kernels([record], as_json=json)


def kernel_import(
    file: Annotated[Path, typer.Argument(help="A file that `kmlab kernel export` wrote.", metavar="FILE")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Add an exported kernel to the cache. Guests boot it, so import only files that you trust."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.provision.kernels import kernel_store

    render.built_kernels([kernel_store.import_kernel(file)], as_json=json)
