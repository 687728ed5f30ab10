"""The toolchain of a sandbox: the compiler, tools and headers of a base, as a tree of files on the host.

A build on the host takes a tenth of the time of one in an emulated guest. It is the same build: the same programs
on the same headers, under the same paths. The files are read out of the base's disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from kmlab.common import paths
from kmlab.common.errors import ImageError, LabError
from kmlab.common.events import Deadline, EventSink, Note, Stage
from kmlab.host.disk import disks, rootfs
from kmlab.host.process import locks, sandbox
from kmlab.provision.plan.artifact import LOCK_PATIENCE

_TOP = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Where they are not links into /usr, they are taken as /usr's are."""
_LEFT_OUT = frozenset(
    f"{folder}/{name}"
    for folder, names in {
        "": ("games", "local"),
        "/lib": ("modules", "firmware", "grub", "shim", "systemd", "udev", "klibc", "openssh", "apt", "init"),
        "/share": ("doc", "man", "info", "locale", "i18n", "grub", "zoneinfo", "bash-completion", "lintian"),
    }.items()
    for name in names
)
"""What no build needs, relative to /usr, or to / where that is not merged with it."""
_ETC = (
    *("alternatives", "debian_version", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime"),
    *("nsswitch.conf", "os-release", "passwd", "perl", "python3"),
)
_SCRATCH = "toolchains"
_PATIENCE = 600.0
_NEEDED = 3 << 30


class Target(Protocol):
    """What decides where a guest's modules are built and with what: a GuestRecord, or a guest that is still to come."""

    @property
    def name(self) -> str: ...
    @property
    def arch(self) -> str: ...
    @property
    def accel(self) -> str: ...
    @property
    def base(self) -> str: ...
    @property
    def release(self) -> str: ...


def toolchain_for(wanted: str, record: Target, report: EventSink) -> Path | None:
    """The root of the sandbox that modules for this guest are built in; None: they are built in the guest.

    `wanted` is lab.yaml's `build`. `auto` takes a sandbox where the guest is emulated though it has the host's own
    architecture, and the guest where no sandbox can be made.
    """
    host = os.uname().machine
    if wanted == "guest" or (wanted == "auto" and (record.accel != "tcg" or record.arch != host)):
        return None
    try:
        if record.arch != host:
            raise LabError(f"build: sandbox, but guest '{record.name}' is {record.arch} and this host is {host}")
        sandbox.check()
        return ensure_toolchain(record.base, record.release, record.name, report)
    except LabError as error:
        if wanted == "sandbox":
            raise LabError(error.message, error.hint or "build in the guest: `build: guest`") from error
        report(Note(record.name, f"modules are built in the guest, which is slower: {error.message} ({error.hint})"))
        return None


def ensure_toolchain(base: str, release: str, subject: str, report: EventSink) -> Path:
    """The tree of the base of that key, read out of its disk when it is not there yet."""
    final = paths.toolchains() / base
    if (final / "toolchain.json").exists():
        return final / "root"
    with locks.held(paths.work() / f"toolchain-{base}.lock", subject, report, Deadline(LOCK_PATIENCE)):
        if not (final / "toolchain.json").exists():
            paths.require_space(paths.toolchains(), _NEEDED, f"the toolchain of '{subject}'")
            with Stage(report, subject, "reading the toolchain out of the base, to build on this host") as stage:
                _sweep(base)
                # A scratch folder of its own: those of the base bear the same key.
                with paths.published(final, paths.work() / _SCRATCH) as half:
                    _read_out(paths.bases() / base / "disk.qcow2", release, half, stage, Deadline(_PATIENCE))
                    paths.write_json(half / "toolchain.json", {"release": release})
                stage.detail = f"{disks.size_on_disk(final) / 2**20:.0f} MiB"
    return final / "root"


def sweep_toolchains() -> None:
    """Remove what a killed kmlab left half-made."""
    for lock in paths.work().glob("toolchain-*.lock"):
        if locks.is_free(lock):
            _sweep(lock.stem.removeprefix("toolchain-"))


def _sweep(base: str) -> None:
    for folder in (paths.work() / _SCRATCH).glob(f"{base[:12]}.*"):
        paths.remove_tree(folder)


def _read_out(disk: Path, release: str, folder: Path, stage: Stage, deadline: Deadline) -> None:
    if not disk.exists():
        raise ImageError(f"{disk}: the base's disk is not there", "kmlab up makes it")
    stage.progress(detail="unpacking the disk")
    with rootfs.opened(disk, folder, deadline) as filesystem:
        wanted: list[tuple[str, str]] = []
        for entry in filesystem.entries("/"):
            if entry.name in _TOP:
                _select(filesystem, f"/{entry.name}", entry, wanted)
        wanted += [(f"/etc/{entry.name}", "/etc") for entry in filesystem.entries("/etc") if entry.name in _ETC]
        lib = "/lib" if any(e.name == "lib" and not e.is_link for e in filesystem.entries("/")) else "/usr/lib"
        modules = f"{lib}/modules/{release}"
        wanted += [(f"{modules}/{name}", modules) for name in ("build", "source")]
        stage.progress(detail="copying compiler and headers")
        filesystem.copy(wanted, folder / "root")
    for place in sandbox.PLACES:
        (folder / "root" / place).mkdir(parents=True, exist_ok=True)
    for program in folder.glob("root/usr/bin/*-lto-dump-*"):
        program.unlink()
    if not list(folder.glob("root/usr/bin/make")) or not os.path.lexists(folder / "root" / modules[1:] / "build"):
        raise ImageError(f"{disk}: no make or no headers of {release} found in it", "build in the guest: build: guest")


def _select(filesystem: rootfs.Filesystem, path: str, entry: rootfs.Entry, wanted: list[tuple[str, str]]) -> None:
    """Add what is wanted of `path`, as (path, folder that it goes into): whole folders where nothing is left out."""
    relative = path.removeprefix("/usr") + "/"
    if relative.rstrip("/") in _LEFT_OUT:
        return
    if entry.is_folder and (relative == "/" or any(out.startswith(relative) for out in _LEFT_OUT)):
        for below in filesystem.entries(path):
            _select(filesystem, f"{path}/{below.name}", below, wanted)
    else:
        wanted.append((path, str(Path(path).parent)))
