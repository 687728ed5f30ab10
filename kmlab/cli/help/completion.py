"""Complete the words of a command in the shell: guests, modules, images and kernels.

A mistake in lab.yaml completes nothing: the shell has no place for an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from kmlab.config.lab import Lab

_KERNEL_WORDS = ("default", "exact", "hwe", "backports", "security", "rt", "cloud", "generic")
"""Names of kernels that every archive may have. Versions come from the archives that were read before."""


def guests(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the lab's guests; after `GUEST@`, with each known kernel."""
    lab = _lab(ctx)
    plain, at, _ = incomplete.partition("@")
    if at:
        return _beginning(incomplete, (f"{plain}@{kernel}" for kernel in _kernel_names(lab)))
    return _beginning(incomplete, lab.guests if lab else ())


def places(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return `GUEST:` for each guest; the shell completes files."""
    lab = _lab(ctx)
    return [f"{name}:" for name in _beginning(incomplete, lab.guests if lab else ())]


def modules(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the lab's modules: their folders as one would type them here, and their names."""
    lab = _lab(ctx)
    if lab is None:
        return []
    folders = [_relative(lab.locate(module.source)) for module in lab.modules.values()]
    return _beginning(incomplete, [*folders, *lab.modules])


def kernels(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return names of kernels, also as the last one of a list: `6.1,6.1`."""
    lab = _lab(ctx)
    before, comma, last = incomplete.rpartition(",")
    names = [*_kernel_names(lab), *(lab.guests if lab and comma else ())]
    return [f"{before}{comma}{name}" for name in _beginning(last, names)]


def images(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the images of the catalogue."""
    from kmlab.config.catalog import image_names

    lab = _lab(ctx)
    return _beginning(incomplete, image_names(lab.folder if lab else None))


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete) and name.isprintable()]


def _kernel_names(lab: Lab | None) -> list[str]:
    from kmlab.common import paths

    known = paths.read_json(paths.known_kernels())
    versions = [word for word in known if isinstance(word, str)] if isinstance(known, list) else []
    columns = [column.rpartition("@")[2] for column in lab.matrix] if lab else []
    return [*columns, *versions, *_KERNEL_WORDS]


def _relative(folder: Path) -> str:
    relative = os.path.relpath(folder)
    return str(folder) if relative.startswith("../..") else relative


def _lab(ctx: typer.Context) -> Lab | None:
    from kmlab.common.errors import KmlabError
    from kmlab.config.default_lab import find_default_lab
    from kmlab.config.lab import find_lab, load_lab

    try:
        file = ctx.params.get("lab") or find_lab(Path.cwd())
        return load_lab(Path(file)) if file else find_default_lab(Path.cwd())
    except (KmlabError, OSError):
        return None
