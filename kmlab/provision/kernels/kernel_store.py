"""Prune the kernels that kmlab has built, and move one to another machine as a file."""

from __future__ import annotations

from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.host.disk import disks
from kmlab.host.process import locks
from kmlab.provision.kernels.built_kernel import BuiltKernelRecord, list_kernels, read_record
from kmlab.provision.plan.folder_archive import Kind, export_folder, import_folder

_KERNEL = Kind("kernel", 4 << 30)


def prune() -> tuple[list[str], int]:
    """Remove unfinished builds, and kernels that no cached base contains. Return their names, and the freed bytes."""
    removed, freed = [], 0
    for folder in sorted(paths.kernel_builds().glob("*")):
        lock = paths.work() / f"kernel-{folder.name}.lock"
        if not lock.exists() or locks.is_free(lock):
            freed += disks.size_on_disk(folder)
            paths.remove_tree(folder)
            removed.append(f"kernel-builds/{folder.name}")
    bases = [paths.read_json(path) for path in paths.bases().glob("*/base.json")]
    used = {base.get("kernel") for base in bases if isinstance(base, dict)}
    for record in list_kernels():
        if record.key not in used:
            freed += disks.size_on_disk(record.folder)
            paths.remove_tree(record.folder)
            removed.append(f"kernels/{record.key}")
    return removed, freed


def export_kernel(key: str, file: Path) -> BuiltKernelRecord:
    """Write the kernel with that key to `file`, a tar archive with the digest of each file. Return its record."""
    found = [record for record in list_kernels() if key and record.key.startswith(key)]
    if len(found) != 1:
        what = "names several kernels" if found else "names no kernel"
        raise ConfigError(f"'{printable(key)}' {what} that kmlab has built", "`kmlab kernel list` shows their keys")
    (record,) = found
    export_folder(record.folder, file)
    return record


def import_kernel(file: Path) -> BuiltKernelRecord:
    """Add an exported kernel to the cache, after checking the digest of each of its files. Return its record."""
    return import_folder(file, paths.kernels(), _KERNEL, _read_kernel)


def _read_kernel(folder: Path, key: str) -> BuiltKernelRecord | None:
    record = read_record(folder / "kernel.json")
    return record if record is not None and record.key == key else None
