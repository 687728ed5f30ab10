"""Write a folder of the cache to one file, and read it back on another machine with the digest of each file checked.

The file may come from anywhere: it is read only if it is a tar archive of a few plain files in one folder.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from kmlab.common import paths
from kmlab.common.errors import ConfigError, LabError
from kmlab.common.events import printable
from kmlab.host.disk import disks

T = TypeVar("T")
_SUMS = "sums.json"
_MOST_FILES = 16


class Kind(NamedTuple):
    """What such files contain."""

    name: str
    """For messages: `kernel`."""
    largest: int
    """Bytes of all files."""


def export_folder(folder: Path, file: Path) -> None:
    """Write a tar archive with the plain files of a folder, and their digests."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    sums = {name: disks.digest(folder / name) for name in names}
    temporary = file.with_name(f".{file.name}.part")
    digests = temporary.with_suffix(".sums")
    try:
        digests.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.add(digests, f"{folder.name}/{_SUMS}", recursive=False)
            for name in names:
                archive.add(folder / name, f"{folder.name}/{name}", recursive=False)
        temporary.replace(file)
    except OSError as error:
        raise LabError(f"{printable(str(file))}: cannot write this file: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
        digests.unlink(missing_ok=True)


def import_folder(file: Path, into: Path, kind: Kind, check: Callable[[Path, str], T | None]) -> T:
    """Add the folder of an archive to the folder `into`, after checking the digest of each of its files.

    `check` gets the folder and its name in the archive. It returns what the folder is, or None if that is not `kind`.
    """
    shown = printable(str(file))
    try:
        with tarfile.open(file, "r:") as archive:
            members = archive.getmembers()
            key = _only_folder(members)
            size = sum(member.size for member in members)
            if key is None or len(members) > _MOST_FILES or size > kind.largest:
                raise not_exported(shown, kind)
            if (into / key).exists():
                # Guests may use it. It is what this file has, or else the name says that it is another one.
                known = check(into / key, key)
                if known is not None:
                    return known
            paths.require_space(into, 2 * size, f"the {kind.name}")
            with paths.atomic_folder(into / key, paths.work()) as folder:
                for member in members:
                    _extract(archive, member, folder)
                _check_sums(folder, shown, kind)
                found = check(folder, key)
                if found is None:
                    raise not_exported(shown, kind)
                return found
    except (tarfile.TarError, EOFError) as error:
        raise not_exported(shown, kind) from error
    except OSError as error:
        raise ConfigError(f"{shown}: cannot read this file: {error.strerror or error}") from error


def not_exported(shown: str, kind: Kind) -> ConfigError:
    return ConfigError(
        f"{shown}: `kmlab {kind.name} export` did not write this file, or it is damaged", "export it again"
    )


def _only_folder(members: list[tarfile.TarInfo]) -> str | None:
    """Return the folder that all members are in, if each is a plain file in it."""
    names = [PurePosixPath(member.name) for member in members]
    folders = {name.parts[0] for name in names if len(name.parts) == 2}
    plain = all(
        member.isreg() and len(name.parts) == 2 and not {".", ".."} & set(name.parts)
        for member, name in zip(members, names, strict=True)
    )
    return next(iter(folders)) if plain and len(folders) == 1 else None


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    content = archive.extractfile(member)
    assert content is not None, "a plain file has a content"
    # A name that is there twice is not overwritten: the second one is an error.
    with (folder / PurePosixPath(member.name).name).open("xb") as target:
        while chunk := content.read(1 << 20):
            target.write(chunk)


def _check_sums(folder: Path, shown: str, kind: Kind) -> None:
    sums = paths.read_json(folder / _SUMS)
    names = {path.name for path in folder.iterdir()} - {_SUMS}
    if not isinstance(sums, dict) or set(sums) != names:
        raise not_exported(shown, kind)
    for name, digest in sums.items():
        if disks.digest(folder / name) != digest:
            raise ConfigError(f"{shown}: the file {printable(name)} in it was changed", f"export the {kind.name} again")
    os.unlink(folder / _SUMS)
