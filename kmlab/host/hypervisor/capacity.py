"""Calculate how many guests this host can run in parallel (sched_getaffinity(2), proc_meminfo(5), statvfs(3))."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_RESERVE = 1 << 30
"""Bytes of memory for the host itself: for builds in the sandbox, kmlab and the user."""
_QEMU_MEMORY = 256 << 20
"""Bytes that QEMU uses in addition to a guest's memory."""
_OVERLAY = 1 << 30
"""Bytes by which a guest's disk may grow. A dump of its memory (checkpoint or vmcore) comes in addition."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The free resources of the host at this moment."""

    cores: int
    memory: int
    """Bytes that are available without swapping."""
    disk: int
    """Free bytes on the disk for guests."""

    def side_by_side(self, memories: Sequence[int]) -> int:
        """Return how many guests of these sizes can run at once: one per core if memory and disk allow; at least 1."""
        fits = [count for count in range(1, len(memories) + 1) if count <= self.cores and self.holds(memories, count)]
        return max(fits, default=1)

    def holds(self, memories: Sequence[int], count: int | None = None) -> bool:
        """Return whether any `count` of them (default: all) can be up at the same time."""
        largest = sorted(memories, reverse=True)[:count]
        needs_disk = sum(memory + _OVERLAY for memory in largest)
        return sum(memory + _QEMU_MEMORY for memory in largest) <= self.memory - _RESERVE and needs_disk <= self.disk

    def __str__(self) -> str:
        gib = 2**30
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        return f"{cores}, {self.memory / gib:.1f} GiB of memory and {self.disk / gib:.1f} GiB of disk free"


def measured(folder: Path) -> Capacity:
    """Measure this host now. `folder` is the folder for guests' disks; it need not exist."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    available = int(match[1]) << 10 if match else 0
    return Capacity(len(os.sched_getaffinity(0)), available, shutil.disk_usage(existing).free)
