"""How things of the cache are made: locked, in a folder of their own, recorded, and whole or not at all.

Half-made things lie in `store.work()`, so that ^C and kill -9 leave nothing that counts.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from kmlab.common import paths
from kmlab.common.errors import BootPanicked, ImageError, LabError
from kmlab.common.events import Deadline, EventSink, Note, printable
from kmlab.host import Host
from kmlab.host.disk import disks
from kmlab.host.hypervisor import hypervisor
from kmlab.host.process import command, locks
from kmlab.provision.plan.plan import Plan
from kmlab.virt.domain import Domain, to_xml
from kmlab.virt.firmware import Firmware, why_refused, why_silent

LOCK_PATIENCE = 3600.0
"""Seconds to wait for another kmlab that makes the same thing."""
BOOT_PATIENCE = 120.0
SSH = 22
T = TypeVar("T")
_ESCAPE = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]")


@contextlib.contextmanager
def booted(
    host: Host, wanted: Plan, domain: Domain, folder: Path, deadline: Deadline
) -> Iterator[hypervisor.Hypervisor]:
    """A domain that runs while the block does, and not after."""
    with host.hypervisor(wanted.lab.libvirt, folder / "v", deadline) as hv:
        xml = to_xml(domain, command.find(command.emulator(wanted.arch)))
        try:
            hv.start(xml)
            yield hv
        except LabError:
            with contextlib.suppress(OSError):
                shutil.copyfile(domain.console, paths.failed_boot())
            require_disk_space(wanted)
            raise
        finally:
            with contextlib.suppress(LabError):
                hv.stop(domain.name)
            hypervisor.kill(folder)
    paths.remove_tree(folder / "v")


def boot_twice(boot: Callable[[], T], subject: str, report: EventSink) -> T:
    """What `boot` returns; once more if the kernel panics in it, as an emulated one may do by chance."""
    try:
        return boot()
    except BootPanicked as error:
        report(Note(subject, f"{error.message}: booting once more"))
        return boot()


def record(path: Path, file: Path, facts: Mapping[str, object]) -> None:
    """Say what was made, and how its file looks now that it is whole."""
    disks.freeze(file)
    status = file.stat()
    about = {**facts, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": disks.digest(file)}
    paths.write_json(path, about)


def check(path: Path, file: Path) -> dict[str, object]:
    """The record beside a cached file; ImageError if the file is not what was recorded."""
    known = paths.read_json(path)
    remedy = f"remove it and it is made again: rm -rf {path.parent}"
    if not isinstance(known, dict) or "sha256" not in known:
        raise ImageError(f"{path}: this record of the cache is damaged", remedy)
    try:
        status = file.stat()
    except OSError as error:
        raise ImageError(f"{file}: {error.strerror}", remedy) from None
    if status.st_size != known["size"]:
        raise ImageError(f"{file}: cut short or altered: {status.st_size} bytes instead of {known['size']}", remedy)
    if status.st_mtime_ns != known["mtime_ns"] and disks.digest(file) != known["sha256"]:
        raise ImageError(f"{file}: altered since it was made", remedy)
    return known


def sweep() -> None:
    """Clear away what a killed kmlab left half-made in the cache, with any QEMU that still runs there."""
    if paths.work().is_dir():
        for lock in paths.work().glob("*.lock"):
            if locks.is_free(lock):
                sweep_key(lock.stem)


def sweep_key(key: str) -> None:
    """Remove half-made things of this key; its lock must be free or ours."""
    for folder in paths.work().glob(f"{paths.work_prefix(key)}.*"):
        if folder.is_dir():
            hypervisor.kill(folder)
            paths.remove_tree(folder)


def require_no_panic(wanted: Plan, console: str) -> None:
    """LabError if the kernel on this console has panicked: waiting for it makes no sense."""
    if "Kernel panic" not in console:
        return
    from kmlab.kernel.crash.crash import outcome_of
    from kmlab.kernel.crash.scanner import find_crashes
    from kmlab.kernel.log.records import parse_log

    crashes = find_crashes(parse_log(console.encode()).records)
    title = next((crash.title for crash in crashes if outcome_of(crash) == "panic"), None)
    if title is not None:
        raise BootPanicked(
            f"guest '{wanted.spec.name}' panicked while it booted: {printable(title, 200)}",
            f"look at its cmdline and kernel in lab.yaml; its console: {paths.failed_boot()}",
        )


def require_disk_space(wanted: Plan) -> None:
    """LabError if the disk is full on which half-made things lie.

    QEMU stops a guest whose own disk finds no room there, and says nothing (virtio-blk's werror).
    """
    paths.require_space(paths.work(), paths.MIN_FREE_SPACE, f"the disk of guest '{wanted.spec.name}'")


def require_firmware_output(wanted: Plan, chosen: Firmware, console: str) -> None:
    """LabError if the firmware has not said a word: asked when it has had time for it."""
    if not console:
        message, hint = why_silent(chosen)
        raise LabError(f"guest '{wanted.spec.name}': {message}", hint)


def require_trust(wanted: Plan, console: str) -> None:
    """LabError if Secure Boot has refused a part of the boot chain: firmware and GRUB wait for a person then."""
    why = why_refused(console) if wanted.firmware.secure else None
    if why is not None:
        raise LabError(
            f"guest '{wanted.spec.name}' does not start with Secure Boot: {why}",
            "needed are shim, GRUB and a kernel that the distribution signed; or `secure_boot: false`",
        )


def parse_facts(text: str) -> dict[str, str]:
    """`key=value` lines as a dictionary; other lines are left out."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value.strip() for key, found, value in pairs if found and key.isidentifier()}


def read_console(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def last_line(console: str) -> str:
    lines = console[-4000:].strip().splitlines()
    return printable(_ESCAPE.sub("", lines[-1]).strip(), 100) if lines else ""
