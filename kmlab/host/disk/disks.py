"""Make disk files: overlays, the NoCloud seed, and whole disks, without mounts or loop devices.

Only this file imports pycdlib. Follows qemu-img(1), sfdisk(8) and mtools(1).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kmlab.common import folder_tree
from kmlab.common.errors import ImageError
from kmlab.common.events import Deadline
from kmlab.host.process import command

MIB = 1 << 20
_ESP_MIB = 64


def make_overlay(overlay: Path, backing: Path, deadline: Deadline, size: int | None = None) -> None:
    """Create an empty qcow2 overlay on `backing`, which must not change. `size` is in bytes; None: the same size."""
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(backing.resolve()), str(overlay)]
    command.run([*argv, *([str(size)] if size is not None else [])], deadline=deadline)


def convert_raw(raw: Path, target: Path, deadline: Deadline) -> None:
    """Convert a raw disk image to qcow2, without guessing the format from its first bytes."""
    command.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, target], deadline=deadline)


def make_seed(seed: Path, files: Mapping[str, str | Path]) -> None:
    """Create a NoCloud volume: an ISO 9660 image labelled "cidata" with these files, given as text or as paths.

    https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
    """
    import pycdlib

    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, content) in enumerate(sorted(files.items())):
        iso_path, joliet = f"/FILE{number}.;1", f"/{name}"
        if isinstance(content, Path):
            image.add_file(str(content), iso_path, rr_name=name, joliet_path=joliet)
        else:
            encoded = content.encode()
            image.add_fp(io.BytesIO(encoded), len(encoded), iso_path, rr_name=name, joliet_path=joliet)
    image.write(str(seed))
    image.close()


def make_disk(target: Path, *, root: Path, esp: Mapping[str, Path], deadline: Deadline) -> None:
    """Create a qcow2 disk with a GPT, an EFI system partition with the files `esp`, and the file system `root`.

    `esp` maps paths on the partition ("EFI/BOOT/BOOTX64.EFI") to files. Temporary files are in `target`'s folder.
    """
    folder = target.parent
    system, raw = folder / "esp.img", folder / "disk.raw"
    root_mib = -(-root.stat().st_size // MIB)
    with system.open("wb") as file:
        file.truncate(_ESP_MIB * MIB)
    command.run(["mkfs.vfat", "-F", "32", "-n", "KMLAB-ESP", system], deadline=deadline)
    folders = sorted({str(parent) for path in esp for parent in Path(path).parents if str(parent) != "."})
    command.run(["mmd", "-i", system, *(f"::{name}" for name in folders)], deadline=deadline)
    for path, source in esp.items():
        command.run(["mcopy", "-i", system, source, f"::{path}"], deadline=deadline)
    with raw.open("wb") as file:
        file.truncate((1 + _ESP_MIB + root_mib + 1) * MIB)
    layout = folder / "layout"
    layout.write_text(
        "label: gpt\n"
        f"start=1MiB, size={_ESP_MIB}MiB, type=U, name=ESP\n"
        f"start={1 + _ESP_MIB}MiB, size={root_mib}MiB, type=L, name=root\n"
    )
    command.run(["sfdisk", "-q", raw], deadline=deadline, stdin=layout)
    _copy_into(raw, system, 1 * MIB)
    _copy_into(raw, root, (1 + _ESP_MIB) * MIB)
    convert_raw(raw, target, deadline)
    for scratch in (system, raw, layout):
        scratch.unlink()


def read_from_filesystem(filesystem: Path, path: str, target: Path, deadline: Deadline) -> None:
    """Copy one file out of an ext4 image, without mounting it."""
    command.run(["debugfs", "-R", f"dump {path} {target}", filesystem], deadline=deadline)
    if not target.exists() or target.stat().st_size == 0:
        raise ImageError(f"{filesystem.name}: has no file {path}")


def make_empty(path: Path, size: int) -> None:
    """Create a private file of zeros, in place of what was there. It takes no space on the disk yet."""
    path.unlink(missing_ok=True)
    path.touch(0o600)
    os.truncate(path, size)


def digest(path: Path, progress: Callable[[int, int], None] | None = None, kind: str = "sha256") -> str:
    """Return the digest of a file in hex; `kind` is a name of hashlib."""
    total, done, sha = path.stat().st_size, 0, hashlib.new(kind)
    with path.open("rb") as file:
        while chunk := file.read(8 * MIB):
            sha.update(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
    return sha.hexdigest()


def copy(source: Path, target: Path) -> None:
    """Copy a file; the copy is private and writable."""
    shutil.copyfile(source, target)
    target.chmod(0o600)


def freeze(path: Path) -> None:
    """Make a file read-only, because it is shared from now on."""
    path.chmod(0o444)


def size_on_disk(folder: Path) -> int:
    """Return the bytes that a folder's files use on the disk."""
    with contextlib.suppress(OSError), folder_tree.opened(folder) as top:
        return sum(
            entry.status.st_blocks * 512
            for entry in folder_tree.walk(top, unreadable=lambda *_: None)
            if not stat.S_ISDIR(entry.status.st_mode)
        )
    return 0


def _copy_into(target: Path, source: Path, offset: int) -> None:
    """Copy `source` to `offset` in `target`, without its holes and zero blocks."""
    zeros = bytes(MIB)
    with source.open("rb") as reader, target.open("r+b") as writer:
        for begin, end in _data_ranges(reader.fileno()):
            reader.seek(begin)
            for position in range(begin, end, MIB):
                chunk = reader.read(min(MIB, end - position))
                if chunk != zeros[: len(chunk)]:
                    writer.seek(offset + position)
                    writer.write(chunk)


def _data_ranges(handle: int) -> Iterator[tuple[int, int]]:
    """Yield the (begin, end) of each range of a sparse file that has data (lseek(2), SEEK_DATA)."""
    end = 0
    while True:
        try:
            begin = os.lseek(handle, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(handle, begin, os.SEEK_HOLE)
        yield begin, end
