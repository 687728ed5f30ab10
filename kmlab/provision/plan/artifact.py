"""Make artifacts of the cache: locked, in a separate folder, with a record, and atomically.

Incomplete artifacts are in `paths.work()`, so that ^C and kill -9 leave nothing that looks complete.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from kmlab.common import paths
from kmlab.common.errors import BootPanicked, BootStuck, ImageError, LabError
from kmlab.common.events import Deadline, EventSink, Note, printable
from kmlab.host import Host
from kmlab.host.disk import disks
from kmlab.host.hypervisor import hypervisor
from kmlab.host.packages import mmdebstrap
from kmlab.host.process import command, locks
from kmlab.provision.plan import integrity
from kmlab.provision.plan.plan import Plan
from kmlab.virt.domain import Domain, to_xml
from kmlab.virt.firmware import Firmware, why_refused, why_silent

LOCK_PATIENCE = 3600.0
"""Seconds to wait for another kmlab that makes the same artifact."""
SSH = 22
T = TypeVar("T")
_ESCAPE = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]")


@contextlib.contextmanager
def booted(host: Host, plan: Plan, domain: Domain, folder: Path, deadline: Deadline) -> Iterator[hypervisor.Hypervisor]:
    """Run a domain during the block, and kill it afterwards. After a failure, keep its console as failed-boot.log."""
    with host.hypervisor(plan.lab.libvirt, folder / "v", deadline) as hv:
        xml = to_xml(domain, command.find(command.emulator(plan.arch)))
        try:
            hv.start(xml)
            yield hv
        except LabError:
            with contextlib.suppress(OSError):
                shutil.copyfile(domain.console, paths.failed_boot())
            require_disk_space(plan)
            raise
        finally:
            with contextlib.suppress(LabError):
                hv.stop(domain.name)
            hypervisor.kill(folder)
    paths.remove_tree(folder / "v")


def boot_twice(boot: Callable[[], T], subject: str, report: EventSink) -> T:
    """Call `boot` and return its result. Retry once if the kernel panics or hangs, as an emulated one may by chance."""
    try:
        return boot()
    except (BootPanicked, BootStuck) as error:
        report(Note(subject, f"{error.message}: booting once more"))
        return boot()


def record_artifact(path: Path, file: Path, facts: Mapping[str, object], others: Sequence[Path] = ()) -> None:
    """Write an artifact's record: the facts, and the size, time and digest of its files, which become read-only.

    `others` are files beside the main one.
    """
    files = {}
    for each in (file, *others):
        disks.freeze(each)
        status = each.stat()
        files[each.name] = {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": disks.digest(each),
        }
    about = {**facts, **files[file.name], "files": files}
    paths.write_json(path, about)
    integrity.vouch(path.parent, {name: integrity.identity(path.with_name(name)) for name in files})


def check_artifact(path: Path, file: Path, *, every_byte: bool = False) -> dict[str, object]:
    """Return the record of a cached file. Raise ImageError if it, or a file beside it, has changed or is missing.

    A file whose size, times and inode are those of the last check is not read again in this boot of the host, except
    for `every_byte`.
    """
    about = paths.read_json(path)
    remedy = f"remove it, and kmlab makes it again: rm -rf {path.parent}"
    if not isinstance(about, dict) or "sha256" not in about:
        raise ImageError(f"{path}: this record is missing or damaged", remedy)
    known = {} if every_byte else integrity.vouched(path.parent)
    now: dict[str, list[int]] = {}
    for name, recorded in about.get("files", {file.name: about}).items():
        place = path.with_name(name)
        try:
            now[name] = integrity.identity(place)
        except OSError as error:
            raise ImageError(f"{place}: {error.strerror}", remedy) from None
        size = now[name][0]
        if size != recorded["size"]:
            raise ImageError(f"{place}: truncated or changed: {size} bytes instead of {recorded['size']}", remedy)
        if known.get(name) != now[name] and disks.digest(place) != recorded["sha256"]:
            raise ImageError(f"{place}: changed after it was made", remedy)
    if known != now:
        integrity.vouch(path.parent, now)
    return about


def sweep() -> None:
    """Remove the incomplete artifacts of a killed kmlab from the cache, and kill any QEMU that still runs there."""
    if paths.work().is_dir():
        for lock in paths.work().glob("*.lock"):
            if locks.is_free(lock):
                sweep_key(lock.stem)


def sweep_key(key: str) -> None:
    """Remove the incomplete artifacts of this key. Its lock must be free or held by the caller."""
    for folder in paths.work().glob(f"{paths.work_prefix(key)}.*"):
        if folder.is_dir():
            hypervisor.kill(folder)
            mmdebstrap.sweep(folder)
            paths.remove_tree(folder)


def require_no_panic(plan: Plan, console: str) -> None:
    """Raise BootPanicked if the console shows that the kernel has panicked."""
    if "Kernel panic" not in console:
        return
    from kmlab.kernel.crash.crash import outcome_of
    from kmlab.kernel.crash.parser.scanner import find_crashes
    from kmlab.kernel.log.records import parse_log

    crashes = find_crashes(parse_log(console.encode()).records)
    title = next((crash.title for crash in crashes if outcome_of(crash) == "panic"), None)
    if title is not None:
        raise BootPanicked(
            f"guest '{plan.spec.name}' panicked while it booted: {printable(title, 200)}",
            f"check cmdline and kernel of the guest in lab.yaml; its console log: {paths.failed_boot()}",
        )


def require_disk_space(plan: Plan) -> None:
    """Raise LabError if the disk for incomplete artifacts is full.

    QEMU pauses a guest without a message if the host's disk is full (virtio-blk's werror).
    """
    paths.require_space(paths.work(), paths.MIN_FREE_SPACE, f"the disk of guest '{plan.spec.name}'")


def require_firmware_output(plan: Plan, chosen: Firmware, console: str) -> None:
    """Raise LabError if the console is still empty. Call this when the firmware has had enough time."""
    if not console:
        message, hint = why_silent(chosen)
        raise LabError(f"guest '{plan.spec.name}': {message}", hint)


def require_trust(plan: Plan, console: str) -> None:
    """Raise LabError if Secure Boot has rejected a part of the boot chain. Firmware and GRUB then wait for input."""
    why = why_refused(console) if plan.firmware.secure else None
    if why is not None:
        raise LabError(
            f"guest '{plan.spec.name}' does not start with Secure Boot: {why}",
            "use shim, GRUB and a kernel that the distribution signed, or set `secure_boot: false`",
        )


def parse_facts(text: str) -> dict[str, str]:
    """Parse `key=value` lines into a dictionary. Skip other lines."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value.strip() for key, separator, value in pairs if separator and key.isidentifier()}


def read_console(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def last_line(console: str) -> str:
    lines = console[-4000:].strip().splitlines()
    return printable(_ESCAPE.sub("", lines[-1]).strip(), 100) if lines else ""
