"""Measure all memory that a tree of processes uses, including files in memory (proc(5), tmpfs(5)).

Besides the pages of a process there are files without a disk: those of memfd_create(2), tmpfs, shared mappings and
System V. They need not be mapped or even open. Counting them takes time, so they are counted only when the host's total
of such memory (Shmem in /proc/meminfo) has grown, and at regular intervals.

Some files have no visible owner: a file in a socket (SCM_RIGHTS) has none, and only root can see all others. The
unexplained rest of the host's growth is therefore reported as well.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kmlab.common.errors import LabError
from kmlab.common.events import Deadline
from kmlab.host.process import command

_SEARCH_THRESHOLD = 16 << 20
"""Bytes that the host's files in memory must grow before their owners are searched."""
_SEARCH_INTERVAL = 10
"""The owners are also searched at every tenth measurement, because other programs may have freed memory."""
_OWN = re.compile(rb"^(?:RssAnon|VmSwap|VmPTE):\s+(\d+) kB", re.MULTILINE)
_SHMEM = re.compile(rb"^Shmem:\s+(\d+) kB", re.MULTILINE)
_PSS_SHMEM = re.compile(rb"^Pss_Shmem:\s+(\d+) kB", re.MULTILINE)


class Footprint(NamedTuple):
    """What the descendants of one process use together."""

    processes: int
    memory: int
    """Bytes."""
    files: int
    """Files and folders in file systems in memory."""
    unexplained: int
    """Growth of the host's files in memory, in bytes, that is not attributed to these processes."""


class MemoryMeter:
    """Measure the descendants of one process repeatedly."""

    def __init__(self) -> None:
        self._before = _unmounted()
        self._turn = 0

    def measure(self, first: int) -> Footprint:
        """Return what the descendants of process `first` use now, without `first` itself."""
        pids = list(_descendants(first))
        memory = sum(map(_own_memory, pids))
        self._turn += 1
        grown = _unmounted() - self._before
        search_all = grown > _SEARCH_THRESHOLD or self._turn % _SEARCH_INTERVAL == 0
        in_memory, files = _file_systems([first, *pids] if search_all else [first])
        if search_all:
            in_memory += _unnamed_files(pids)
            if grown - in_memory > _SEARCH_THRESHOLD and os.geteuid() == 0:
                in_memory += _system_v(first)
        return Footprint(len(pids), memory + in_memory, files, max(0, grown - in_memory))


def _descendants(first: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int(Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    pending = [first]
    while pending:
        for pid in children.get(pending.pop(), ()):
            pending.append(pid)
            yield pid


def _own_memory(pid: int) -> int:
    """Return the bytes of a process's own pages, in memory and swapped out, and of its page tables."""
    with contextlib.suppress(OSError):
        return sum(map(int, _OWN.findall(Path("/proc", str(pid), "status").read_bytes()))) << 10
    return 0


def _unmounted() -> int:
    """Return the bytes of the host's files in memory, without those in file systems that kmlab itself has mounted."""
    match = _SHMEM.search(Path("/proc/meminfo").read_bytes())
    total = int(match[1]) << 10 if match else 0
    return total - sum(map(_used, _mounted("self").values()))


def _mounted(pid: int | str) -> dict[bytes, os.statvfs_result]:
    """Return the file systems in memory that a process has mounted, by device."""
    file_systems: dict[bytes, os.statvfs_result] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc", str(pid), "mountinfo").read_bytes().splitlines():
            words, kind = line.split(b" "), line.partition(b" - ")[2].split(b" ")[0]
            if kind in (b"tmpfs", b"ramfs") and words[2] not in file_systems:
                with contextlib.suppress(OSError):
                    file_systems[words[2]] = os.statvfs(f"/proc/{pid}/root".encode() + _unescaped(words[4]))
    return file_systems


def _used(status: os.statvfs_result) -> int:
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _file_systems(pids: list[int]) -> tuple[int, int]:
    """Return the bytes and the files in the tmpfs that these processes have mounted, each counted once."""
    namespaces: dict[str, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            namespaces.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), pid)
    # A sandbox's root or folder may be in a tmpfs of the host.
    mounted_here = _mounted("self")
    mounted = {device: status for pid in namespaces.values() for device, status in _mounted(pid).items()}
    own = [status for device, status in mounted.items() if device not in mounted_here]
    return sum(map(_used, own)), sum(status.f_files - status.f_ffree for status in own)


def _unescaped(path: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), path)


def _unnamed_files(pids: list[int]) -> int:
    """Return the bytes of nameless files in memory (memfd_create(2), shared mappings), each counted once."""
    blocks: dict[int, int] = {}
    mapped_only = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                _add_blocks(f"/proc/{pid}/fd/{name}", blocks)
        with contextlib.suppress(OSError):
            ranges = list(_mappings(pid))
            try:
                for place in ranges:
                    _add_blocks(f"/proc/{pid}/map_files/{place}", blocks)
            except PermissionError:
                # Only root can see which file it is (proc(5), /proc/PID/map_files). Others can see its size.
                match = _PSS_SHMEM.search(Path("/proc", str(pid), "smaps_rollup").read_bytes())
                mapped_only += int(match[1]) << 10 if match else 0
    return sum(blocks.values()) * 512 + mapped_only


def _add_blocks(path: str, blocks: dict[int, int]) -> None:
    try:
        status = os.stat(path)
    except PermissionError:
        raise
    except OSError:
        return
    if status.st_dev == _unnamed_device():
        blocks[status.st_ino] = status.st_blocks


def _mappings(pid: int) -> Iterator[str]:
    """Yield the address ranges where a process maps such a file, as named in /proc/PID/map_files."""
    device = b"%02x:%02x" % (os.major(_unnamed_device()), os.minor(_unnamed_device()))
    for line in Path("/proc", str(pid), "maps").read_bytes().splitlines():
        words = line.split(b" ", 5)
        if words[3] == device:
            begin, _, end = words[0].partition(b"-")
            yield f"{int(begin, 16):x}-{int(end, 16):x}"


@functools.cache
def _unnamed_device() -> int:
    """Return the device of the kernel's internal tmpfs, which is not mounted (shm_mnt in mm/shmem.c)."""
    handle = os.memfd_create("device")
    try:
        return os.fstat(handle).st_dev
    finally:
        os.close(handle)


def _system_v(first: int) -> int:
    """Return the bytes of the shared memory segments in a process's IPC namespace (sysvipc(7)). Needs root."""
    argv = ["nsenter", "--target", str(first), "--ipc", "cat", "/proc/sysvipc/shm"]
    with contextlib.suppress(LabError, ValueError, IndexError):
        lines = [line.split() for line in command.run(argv, deadline=Deadline(5)).output.splitlines()]
        columns = [lines[0].index(name) for name in ("rss", "swap")]
        return sum(int(words[column]) for words in lines[1:] for column in columns)
    return 0
