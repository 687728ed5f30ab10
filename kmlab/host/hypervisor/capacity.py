"""How many guests this host can have side by side (sched_getaffinity(2), proc_meminfo(5), statvfs(3))."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_RESERVE = 1 << 30
"""Bytes of memory that stay with the host: for builds in the sandbox, for kmlab, for the person."""
_BESIDE = 256 << 20
"""Bytes that QEMU takes beside a guest's own memory."""
_OVERLAY = 1 << 30
"""Bytes that a guest's disk may grow by; besides, its memory may be written: as a checkpoint, or with the evidence."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the host has to give at this moment."""

    cores: int
    memory: int
    """Bytes that can be had without swapping."""
    disk: int
    """Bytes that are free where guests' disks lie."""

    def side_by_side(self, memories: Sequence[int]) -> int:
        """How many guests of these sizes may work at once: one a core while memory and disk last; at least one."""
        fits = [count for count in range(1, len(memories) + 1) if count <= self.cores and self.holds(memories, count)]
        return max(fits, default=1)

    def holds(self, memories: Sequence[int], count: int | None = None) -> bool:
        """Whether any `count` of them (default: all) can be up together, idle or not."""
        largest = sorted(memories, reverse=True)[:count]
        needs_disk = sum(memory + _OVERLAY for memory in largest)
        return sum(memory + _BESIDE for memory in largest) <= self.memory - _RESERVE and needs_disk <= self.disk

    def __str__(self) -> str:
        gib = 2**30
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        return f"{cores}, {self.memory / gib:.1f} GiB of memory and {self.disk / gib:.1f} GiB of disk free"


def measured(folder: Path) -> Capacity:
    """This host now; `folder` is where guests' disks lie, or will."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    available = int(found[1]) << 10 if found else 0
    return Capacity(len(os.sched_getaffinity(0)), available, shutil.disk_usage(existing).free)
