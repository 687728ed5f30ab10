"""Extract the toolchain of a sandbox: the compiler, tools and headers of a base, as files on the host.

A build on the host takes a tenth of the time of a build in an emulated guest. The result is the same: the same programs
and headers, under the same paths. The files are read from the base's disk.
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
from kmlab.provision.plan import integrity
from kmlab.provision.plan.artifact import LOCK_PATIENCE

_TOP_FOLDERS = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Top-level folders to extract. If they are not links into /usr, they are handled like those of /usr."""
_EXCLUDED = frozenset(
    f"{folder}/{name}"
    for folder, names in {
        "": ("games", "local"),
        "/lib": ("modules", "firmware", "grub", "shim", "systemd", "udev", "klibc", "openssh", "apt", "init"),
        "/share": ("doc", "man", "info", "locale", "i18n", "grub", "zoneinfo", "bash-completion", "lintian"),
    }.items()
    for name in names
)
"""Folders that no build needs, relative to /usr, or to / if it is not merged with /usr."""
_ETC = (
    *("alternatives", "debian_version", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime"),
    *("nsswitch.conf", "os-release", "passwd", "perl", "python3"),
)
_SCRATCH = "toolchains"
_PATIENCE = 600.0
_NEEDED_SPACE = 3 << 30


class Target(Protocol):
    """The properties of a guest that determine where and how its modules are built: a GuestRecord or a PendingGuest."""

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


def toolchain_for(build: str, record: Target, report: EventSink) -> Path | None:
    """Return the root of the sandbox for this guest's modules; None means that they are built in the guest.

    `build` is lab.yaml's `build`. `auto` uses a sandbox if the guest is emulated and has the host's architecture, and
    the guest if there can be no sandbox.
    """
    host = os.uname().machine
    if build == "guest" or (build == "auto" and (record.accel != "tcg" or record.arch != host)):
        return None
    try:
        if record.arch != host:
            raise LabError(f"build: sandbox, but guest '{record.name}' is {record.arch} and this host is {host}")
        sandbox.check()
        return ensure_toolchain(record.base, record.release, record.name, report)
    except LabError as error:
        if build == "sandbox":
            raise LabError(error.message, error.hint or "build in the guest: `build: guest`") from error
        report(Note(record.name, f"modules are built in the guest, which is slower: {error.message} ({error.hint})"))
        return None


def ensure_toolchain(base: str, release: str, subject: str, report: EventSink) -> Path:
    """Return the toolchain of the base with that key. Extract it from the base's disk if it does not exist."""
    final = paths.toolchains() / base
    if _is_intact(final, subject, report):
        return final / "root"
    with locks.held(paths.work() / f"toolchain-{base}.lock", subject, report, Deadline(LOCK_PATIENCE)):
        if not _is_intact(final, subject, report):
            paths.require_space(paths.toolchains(), _NEEDED_SPACE, f"the toolchain of '{subject}'")
            with Stage(report, subject, "reading the toolchain out of the base, to build on this host") as stage:
                _sweep(base)
                # A separate scratch folder, because those of the base have the same key.
                with paths.atomic_folder(final, paths.work() / _SCRATCH) as scratch:
                    _extract(paths.bases() / base / "disk.qcow2", release, scratch, stage, Deadline(_PATIENCE))
                    about = {"release": release, "sha256": integrity.tree_digest(scratch / "root")}
                    paths.write_json(scratch / "toolchain.json", about)
                stage.detail = f"{disks.size_on_disk(final) / 2**20:.0f} MiB"
    return final / "root"


def _is_intact(final: Path, subject: str, report: EventSink) -> bool:
    """Return whether a toolchain is there, as it was extracted. Note it if one is there that has changed."""
    if not (final / "toolchain.json").exists():
        return False
    problem = check_toolchain(final)
    if problem is not None:
        report(Note(subject, f"the toolchain is read out of the base again, because it {problem}"))
    return problem is None


def check_toolchain(final: Path, *, every_byte: bool = False) -> str | None:
    """Return what is wrong with a toolchain; None if it is as it was extracted.

    Its files are read once in a boot of the host, and with `every_byte`; otherwise only their times are compared.
    """
    about = paths.read_json(final / "toolchain.json")
    if not isinstance(about, dict) or "sha256" not in about:
        return "has no digest"
    try:
        identity = integrity.tree_identity(final / "root")
        if not every_byte and integrity.vouched(final).get("root") == identity:
            return None
        if integrity.tree_digest(final / "root") != about["sha256"]:
            return "has changed"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    integrity.vouch(final, {"root": identity})
    return None


def sweep_toolchains() -> None:
    """Remove the incomplete toolchains of a killed kmlab."""
    for lock in paths.work().glob("toolchain-*.lock"):
        if locks.is_free(lock):
            _sweep(lock.stem.removeprefix("toolchain-"))


def _sweep(base: str) -> None:
    for folder in (paths.work() / _SCRATCH).glob(f"{base[:12]}.*"):
        paths.remove_tree(folder)


def _extract(disk: Path, release: str, folder: Path, stage: Stage, deadline: Deadline) -> None:
    if not disk.exists():
        raise ImageError(f"{disk}: the base's disk is missing", "run kmlab up to make it")
    stage.progress(detail="unpacking the disk")
    with rootfs.opened(disk, folder, deadline) as filesystem:
        selected: list[tuple[str, str]] = []
        for entry in filesystem.entries("/"):
            if entry.name in _TOP_FOLDERS:
                _select(filesystem, f"/{entry.name}", entry, selected)
        selected += [(f"/etc/{entry.name}", "/etc") for entry in filesystem.entries("/etc") if entry.name in _ETC]
        lib = "/lib" if any(e.name == "lib" and not e.is_link for e in filesystem.entries("/")) else "/usr/lib"
        modules = f"{lib}/modules/{release}"
        selected += [(f"{modules}/{name}", modules) for name in ("build", "source")]
        stage.progress(detail="copying compiler and headers")
        filesystem.copy(selected, folder / "root")
    for place in sandbox.PLACES:
        (folder / "root" / place).mkdir(parents=True, exist_ok=True)
    for program in folder.glob("root/usr/bin/*-lto-dump-*"):
        program.unlink()
    if not list(folder.glob("root/usr/bin/make")) or not os.path.lexists(folder / "root" / modules[1:] / "build"):
        raise ImageError(
            f"{disk}: contains no make or no headers of {release}", "build in the guest: set `build: guest`"
        )


def _select(filesystem: rootfs.Filesystem, path: str, entry: rootfs.Entry, selected: list[tuple[str, str]]) -> None:
    """Add the needed parts of `path` to `selected`, as (path, destination folder); whole folders if possible."""
    relative = path.removeprefix("/usr") + "/"
    if relative.rstrip("/") in _EXCLUDED:
        return
    if entry.is_folder and (relative == "/" or any(out.startswith(relative) for out in _EXCLUDED)):
        for below in filesystem.entries(path):
            _select(filesystem, f"{path}/{below.name}", below, selected)
    else:
        selected.append((path, str(Path(path).parent)))
