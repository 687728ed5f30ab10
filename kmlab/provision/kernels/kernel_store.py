"""Prune the kernels that kmlab has built, and move one to another machine as a file."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path, PurePosixPath

from kmlab.common import paths
from kmlab.common.errors import ConfigError, LabError
from kmlab.common.events import printable
from kmlab.host.disk import disks
from kmlab.host.process import locks
from kmlab.provision.kernels.built_kernel import BuiltKernelRecord, list_kernels, read_record

_SUMS = "sums.json"
_MOST_FILES = 16
_LARGEST = 4 << 30


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
    names = sorted(path.name for path in record.folder.iterdir() if path.is_file())
    sums = {name: disks.digest(record.folder / name) for name in names}
    temporary = file.with_name(f".{file.name}.part")
    try:
        (temporary.with_suffix(".sums")).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.add(temporary.with_suffix(".sums"), f"{record.key}/{_SUMS}", recursive=False)
            for name in names:
                archive.add(record.folder / name, f"{record.key}/{name}", recursive=False)
        temporary.replace(file)
    except OSError as error:
        raise LabError(f"{printable(str(file))}: cannot write this file: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_suffix(".sums").unlink(missing_ok=True)
    return record


def import_kernel(file: Path) -> BuiltKernelRecord:
    """Add an exported kernel to the cache, after checking the digest of each of its files. Return its record."""
    shown = printable(str(file))
    try:
        with tarfile.open(file, "r:") as archive:
            members = archive.getmembers()
            keys = {PurePosixPath(member.name).parts[0] for member in members if PurePosixPath(member.name).parts}
            plain = all(m.isreg() and len(PurePosixPath(m.name).parts) == 2 and ".." not in m.name for m in members)
            size = sum(member.size for member in members)
            if len(keys) != 1 or not plain or len(members) > _MOST_FILES or size > _LARGEST:
                raise _not_exported(shown)
            (key,) = keys
            paths.require_space(paths.kernels(), 2 * size, "the kernel")
            with paths.atomic_folder(paths.kernels() / key, paths.work()) as folder:
                for member in members:
                    content = archive.extractfile(member)
                    if content is None:
                        raise _not_exported(shown)
                    with (folder / PurePosixPath(member.name).name).open("wb") as target:
                        while chunk := content.read(1 << 20):
                            target.write(chunk)
                return _checked(folder, key, shown)
    except (tarfile.TarError, EOFError) as error:
        raise _not_exported(shown) from error
    except OSError as error:
        raise ConfigError(f"{shown}: cannot read this file: {error.strerror or error}") from error


def _checked(folder: Path, key: str, shown: str) -> BuiltKernelRecord:
    sums = paths.read_json(folder / _SUMS)
    names = {path.name for path in folder.iterdir()} - {_SUMS}
    record = read_record(folder / "kernel.json")
    if not isinstance(sums, dict) or set(sums) != names or record is None or record.key != key:
        raise _not_exported(shown)
    for name, digest in sums.items():
        if disks.digest(folder / name) != digest:
            raise ConfigError(f"{shown}: the file {printable(name)} in it was changed", "export the kernel again")
    os.unlink(folder / _SUMS)
    return record


def _not_exported(shown: str) -> ConfigError:
    return ConfigError(f"{shown}: `kmlab kernel export` did not write this file, or it is damaged", "export it again")
