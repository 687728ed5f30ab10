"""Read the root file system of a disk image with debugfs(8), without root and without mounts.

Owners are not kept, and need not be. The content is untrusted: links may point anywhere.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kmlab.common.errors import CommandFailed, ImageError
from kmlab.common.events import Deadline, printable
from kmlab.host.process import command

_LINUX = frozenset(
    {
        "83",
        "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
        "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
        "B921B045-1DF0-41C3-AF44-4C6F280D3FAE",
    }
)
"""Partition types of root file systems: MBR, Linux, x86-64 root, arm64 root (the Discoverable Partitions)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder."""

    name: str
    mode: int

    @property
    def is_folder(self) -> bool:
        return self.mode & 0o170000 == 0o040000

    @property
    def is_link(self) -> bool:
        return self.mode & 0o170000 == 0o120000


@contextlib.contextmanager
def opened(disk: Path, folder: Path, deadline: Deadline) -> Iterator[Filesystem]:
    """Open the root file system of a disk. `folder` gets a raw copy of the disk, which is removed after the block."""
    raw = folder / "disk.raw"
    try:
        command.run(["qemu-img", "convert", "-O", "raw", disk, raw], deadline=deadline)
        yield Filesystem(folder, f"{raw.name}?offset={_root_offset(raw, deadline)}", deadline)
    finally:
        raw.unlink(missing_ok=True)


class Filesystem:
    """An ext4 file system in a file."""

    def __init__(self, folder: Path, name: str, deadline: Deadline) -> None:
        # Relative to the folder that debugfs runs in, because its commands cannot quote every path.
        self.folder, self.name, self.deadline = folder, name, deadline

    def entries(self, path: str) -> list[Entry]:
        """List a folder. `ls -p` prints /inode/mode/user/group/name/size/. Raise ImageError if it cannot be read."""
        output = command.run(
            ["debugfs", "-R", f'ls -p "{path}"', self.name], cwd=self.folder, deadline=self.deadline
        ).output
        rows = [line.split("/") for line in output.splitlines() if line.startswith("/")]
        entries = [Entry(row[5], int(row[2], 8)) for row in rows if len(row) > 5 and row[5] not in (".", "..")]
        if not entries:
            last = output.strip().splitlines()[-1:] or [""]
            too_new = next(
                (line for line in output.splitlines() if re.search("unsupported .*feature|FEATURE_", line)), None
            )
            if too_new is not None:
                raise ImageError(
                    f"this host's e2fsprogs is too old for the image's file system: {printable(too_new, 200)}",
                    "install e2fsprogs 1.47 or newer; or, to build modules in the guest: `build: guest`",
                )
            raise ImageError(f"the root is not a file system that debugfs can read: {printable(last[0], 200)}")
        return entries

    def copy(self, sources: list[tuple[str, str]], target: Path) -> None:
        """Copy each (path, destination folder) below `target`, folders with their content.

        Missing paths are skipped.
        """
        lines = []
        for path, parent in sources:
            (target / parent[1:]).mkdir(parents=True, exist_ok=True)
            lines.append(f'rdump "{path}" "{target.name}{parent}"\n')
        script = self.folder / "commands"
        script.write_text("".join(lines), encoding="utf-8")
        # An ordinary user cannot change owners: debugfs prints a warning for each file and continues.
        command.run(["debugfs", "-f", script.name, self.name], cwd=self.folder, deadline=self.deadline)
        script.unlink()


def _root_offset(raw: Path, deadline: Deadline) -> int:
    """Return the offset of the root file system: of the largest Linux partition, or 0 without a partition table."""
    try:
        output = command.run(["sfdisk", "--json", raw], deadline=deadline).output
        table = json.loads(output[output.index("{") :])["partitiontable"]
    except (CommandFailed, ValueError):
        return 0
    linux = [part for part in table["partitions"] if part["type"].upper() in _LINUX] or table["partitions"]
    return int(max(linux, key=lambda part: part["size"])["start"]) * int(table.get("sectorsize", 512))
