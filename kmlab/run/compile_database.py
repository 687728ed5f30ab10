"""Write compile_commands.json for a module that was built in a sandbox, with the headers in the cache."""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections.abc import Iterator
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ConfigError, LabError
from kmlab.common.events import escape_surrogates
from kmlab.config.lab import GuestSpec, Lab, Module
from kmlab.config.run_options import Options
from kmlab.host.process.untrusted_folder import UntrustedFolder
from kmlab.kernel.build.compile_commands import Entry, entry, parse_command
from kmlab.provision.guest import read_record
from kmlab.provision.plan.plan import lab_files
from kmlab.run.build.request import request_for
from kmlab.run.build.source_folder import folder_in_guest

FILE = "compile_commands.json"
_LARGEST_NOTE = 1 << 20


def in_sandbox(lab: Lab) -> Lab:
    """Return the lab with builds in the sandbox, where kbuild's notes and the headers are on this host."""
    return dataclasses.replace(lab, build="sandbox")


def write_database(lab: Lab, spec: GuestSpec, module: Module, options: Options) -> Path:
    """Write the database into the module's folder, and return its path. Raise LabError if the build left no notes."""
    files = lab_files(lab).guest(spec.name)
    record = read_record(files)
    if record is None:
        raise LabError(f"guest '{spec.name}' is not running", "kmlab up")
    tree, root = request_for(lab, module, options).tree, paths.toolchains() / record.base / "root"
    folders = {
        "/usr/src": str(root / "usr/src"),
        "/usr/lib": str(root / "usr/lib"),
        str(folder_in_guest(module.name)): str(tree.root.absolute()),
    }
    entries = list(_entries(files.builds / module.name, f"/usr/src/linux-headers-{record.release}", module, folders))
    if not entries:
        raise LabError(
            f"the build of {module.name} left no notes about its sources",
            "run make clean in its folder, then build it again",
        )
    file = tree.folder / FILE
    listed = [
        {"directory": each.directory, "file": each.file, "arguments": list(each.arguments)}
        for each in sorted(entries, key=lambda each: each.file)
    ]
    try:
        paths.write_text(file, json.dumps(escape_surrogates(listed), indent=1) + "\n")
    except LabError as error:
        raise ConfigError(error.message, "make the module's folder writable") from None
    return file


def _entries(built: Path, headers: str, module: Module, folders: dict[str, str]) -> Iterator[Entry]:
    inside = str(folder_in_guest(module.name))
    with UntrustedFolder(built) as folder:
        for path, _ in folder.files():
            if not path.endswith(".o.cmd"):
                continue
            words = parse_command((folder.read(path, _LARGEST_NOTE) or b"").decode("utf-8", "surrogateescape"))
            # Since Linux 6.13 make works in the module's folder, and its paths begin there.
            here = headers if words and words[-1].startswith("/") else posixpath.join(inside, posixpath.dirname(path))
            made = entry(words, here, folders)
            if made is not None and Path(made.file).is_file():
                yield made
