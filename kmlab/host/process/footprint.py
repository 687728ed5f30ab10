"""Add up what a tree of processes holds in memory, of every kind that no process's own size tells (proc(5), tmpfs(5)).

Beside the pages that belong to one process there are files without a disk: those of memfd_create(2), of tmpfs, of
shared mappings, of System V. Nobody need have them mapped, or even open. Where a kind costs time to count, it is
counted when the host's own total of such memory (Shmem in /proc/meminfo) has grown, and every now and then all the
same.

Not everything has an owner that can be asked: a file that is on its way through a socket (SCM_RIGHTS) has none, and
only root may ask for all. What is left of the host's growth is therefore told as well.
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

_NOTABLE = 16 << 20
"""Bytes by which the host's memory for files without a disk has grown when it is asked whose they are."""
_ANYWAY = 10
"""Every so many times it is asked in any case, as others may have given some back."""
_OWN = re.compile(rb"^(?:RssAnon|VmSwap|VmPTE):\s+(\d+) kB", re.MULTILINE)
_SHMEM = re.compile(rb"^Shmem:\s+(\d+) kB", re.MULTILINE)
_PSS_SHMEM = re.compile(rb"^Pss_Shmem:\s+(\d+) kB", re.MULTILINE)


class Footprint(NamedTuple):
    """What the processes beneath one use together."""

    processes: int
    memory: int
    """Bytes."""
    files: int
    """Files and folders in file systems that are memory."""
    unexplained: int
    """Bytes by which the host's files in memory have grown without these processes being seen to hold them."""


class Measure:
    """Measures the processes beneath one, again and again."""

    def __init__(self) -> None:
        self._before = _unmounted()
        self._turn = 0

    def take(self, first: int) -> Footprint:
        """What the descendants of process `first` use now; `first` itself is nobody's program."""
        pids = list(_descendants(first))
        memory = sum(map(_own_memory, pids))
        self._turn += 1
        grown = _unmounted() - self._before
        everywhere = grown > _NOTABLE or self._turn % _ANYWAY == 0
        in_memory, files = _file_systems([first, *pids] if everywhere else [first])
        if everywhere:
            in_memory += _unnamed_files(pids)
            if grown - in_memory > _NOTABLE and os.geteuid() == 0:
                in_memory += _system_v(first)
        return Footprint(len(pids), memory + in_memory, files, max(0, grown - in_memory))


def _descendants(first: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int(Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    todo = [first]
    while todo:
        for pid in children.get(todo.pop(), ()):
            todo.append(pid)
            yield pid


def _own_memory(pid: int) -> int:
    """Bytes of a process's own pages, in memory and swapped out, and of its page tables."""
    with contextlib.suppress(OSError):
        return sum(map(int, _OWN.findall(Path("/proc", str(pid), "status").read_bytes()))) << 10
    return 0


def _unmounted() -> int:
    """Bytes of this host's files in memory, less those in file systems that kmlab itself sees mounted."""
    found = _SHMEM.search(Path("/proc/meminfo").read_bytes())
    total = int(found[1]) << 10 if found else 0
    return total - sum(map(_used, _mounted("self").values()))


def _mounted(pid: int | str) -> dict[bytes, os.statvfs_result]:
    """The file systems in memory that a process sees mounted, by their device."""
    found: dict[bytes, os.statvfs_result] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc", str(pid), "mountinfo").read_bytes().splitlines():
            words, kind = line.split(b" "), line.partition(b" - ")[2].split(b" ")[0]
            if kind in (b"tmpfs", b"ramfs") and words[2] not in found:
                with contextlib.suppress(OSError):
                    found[words[2]] = os.statvfs(f"/proc/{pid}/root".encode() + _unescaped(words[4]))
    return found


def _used(status: os.statvfs_result) -> int:
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _file_systems(pids: list[int]) -> tuple[int, int]:
    """Bytes and files in the tmpfs that these processes see mounted; each once, in whichever mount namespace."""
    namespaces: dict[str, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            namespaces.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), pid)
    # A sandbox's root, or its folder, may lie in one of the host's.
    here = _mounted("self")
    found = {device: status for pid in namespaces.values() for device, status in _mounted(pid).items()}
    own = [status for device, status in found.items() if device not in here]
    return sum(map(_used, own)), sum(status.f_files - status.f_ffree for status in own)


def _unescaped(path: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), path)


def _unnamed_files(pids: list[int]) -> int:
    """Bytes of files in memory that have no name anywhere: those of memfd_create(2), and shared mappings; each once."""
    blocks: dict[int, int] = {}
    mapped_only = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                _note(f"/proc/{pid}/fd/{name}", blocks)
        with contextlib.suppress(OSError):
            ranges = list(_mappings(pid))
            try:
                for place in ranges:
                    _note(f"/proc/{pid}/map_files/{place}", blocks)
            except PermissionError:
                # Who is not root may not ask which file that is (proc(5), /proc/PID/map_files), but how much of it.
                found = _PSS_SHMEM.search(Path("/proc", str(pid), "smaps_rollup").read_bytes())
                mapped_only += int(found[1]) << 10 if found else 0
    return sum(blocks.values()) * 512 + mapped_only


def _note(path: str, blocks: dict[int, int]) -> None:
    try:
        status = os.stat(path)
    except PermissionError:
        raise
    except OSError:
        return
    if status.st_dev == _unnamed_device():
        blocks[status.st_ino] = status.st_blocks


def _mappings(pid: int) -> Iterator[str]:
    """The address ranges in which a process has such a file mapped, as /proc/PID/map_files names them."""
    device = b"%02x:%02x" % (os.major(_unnamed_device()), os.minor(_unnamed_device()))
    for line in Path("/proc", str(pid), "maps").read_bytes().splitlines():
        words = line.split(b" ", 5)
        if words[3] == device:
            begin, _, end = words[0].partition(b"-")
            yield f"{int(begin, 16):x}-{int(end, 16):x}"


@functools.cache
def _unnamed_device() -> int:
    """The kernel's own tmpfs, which is mounted nowhere (shm_mnt in mm/shmem.c)."""
    handle = os.memfd_create("which")
    try:
        return os.fstat(handle).st_dev
    finally:
        os.close(handle)


def _system_v(first: int) -> int:
    """Bytes of the shared memory segments of a process's IPC namespace (sysvipc(7)), attached or not; root may ask."""
    argv = ["nsenter", "--target", str(first), "--ipc", "cat", "/proc/sysvipc/shm"]
    with contextlib.suppress(LabError, ValueError, IndexError):
        lines = [line.split() for line in command.run(argv, deadline=Deadline(5)).output.splitlines()]
        columns = [lines[0].index(name) for name in ("rss", "swap")]
        return sum(int(words[column]) for words in lines[1:] for column in columns)
    return 0
