"""From an image to a running guest: image → base → checkpoint → guest, each made once and kept.

Here is the last part, the guest; the rooms beside it make what it stands on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from kmlab.common import paths
from kmlab.common.errors import GuestUnreachable, HypervisorError, HypervisorUnavailable, LabError
from kmlab.common.events import Deadline, EventSink, Note, Stage, Timings, printable
from kmlab.config.lab import GuestSpec, Lab
from kmlab.host import Host
from kmlab.host.channel.ssh import Shell, known_hosts_line
from kmlab.host.disk import disks
from kmlab.host.hypervisor import hypervisor
from kmlab.host.process import command, locks
from kmlab.kernel.log.taint import find_unexplained
from kmlab.provision.bases.base import Base, ensure_base
from kmlab.provision.bases.checkpoint import ensure_checkpoint, read_checkpoint, remove_checkpoint
from kmlab.provision.bases.toolchain import Target, sweep_toolchains, toolchain_for
from kmlab.provision.guest import Guest, GuestRecord, read_record, write_record
from kmlab.provision.images.archive_kernel import available
from kmlab.provision.images.image import build_image, catalogue_image, guest_image
from kmlab.provision.plan.artifact import LOCK_PATIENCE, SSH, check, sweep
from kmlab.provision.plan.plan import Plan, arch_of, lab_files, plan
from kmlab.virt.domain import console_tty, retarget

__all__ = [
    "arch_of",
    "available",
    "build_image",
    "catalogue_image",
    "check",
    "destroy_lab",
    "enrol_by_mokmanager",
    "guest_image",
    "guest_session",
    "lab_files",
    "stop",
    "sweep",
    "sweep_toolchains",
    "take_down",
    "toolchain_for",
]

RESTORE_PATIENCE = 30.0
_AGENT_PATIENCE = 5.0
"""Seconds for an agent to answer at all, which takes it some milliseconds."""


@contextlib.contextmanager
def guest_session(
    host: Host,
    lab: Lab,
    spec: GuestSpec,
    report: EventSink,
    *,
    fresh: bool = False,
    unused: bool = False,
    kept: bool = False,
    meanwhile: Callable[[Target], AbstractContextManager[None]] | None = None,
    timings: Timings | None = None,
) -> Iterator[Guest]:
    """The guest, up and clean, with a shell; nobody else works in it meanwhile.

    One that runs and is clean is taken as it is, unless `fresh`, or `unused` and a module was run in it; with `kept`
    also one with modules left loaded in it.
    `meanwhile` begins what needs its base and not the guest itself, as soon as that is known. `timings` gets the parts
    lock, plan, base, checkpoint, restore and connect.
    """
    files, timed = lab_files(lab).guest(spec.name), timings or Timings()
    with contextlib.ExitStack() as stack:
        with timed.part("lock"):
            stack.enter_context(locks.held(files.lock, spec.name, report, Deadline(LOCK_PATIENCE)))
        with timed.part("plan"):
            wanted = plan(host, lab, spec)
        with timed.part("base"):
            base = ensure_base(host, wanted, report)
        with timed.part("checkpoint"):
            checkpoint = ensure_checkpoint(host, wanted, base, report)
        if meanwhile is not None:
            coming = PendingGuest(spec.name, wanted.arch, wanted.acceleration.name, base.key, base.release)
            stack.enter_context(meanwhile(coming))
        yield _enter(host, wanted, base, checkpoint, report, stack, timed, fresh=fresh, unused=unused, kept=kept)


class PendingGuest(NamedTuple):
    """A guest that is not there yet, as a Target."""

    name: str
    arch: str
    accel: str
    base: str
    release: str


def _enter(
    host: Host,
    wanted: Plan,
    base: Base,
    checkpoint: str,
    report: EventSink,
    stack: contextlib.ExitStack,
    timed: Timings,
    *,
    fresh: bool,
    unused: bool,
    kept: bool,
) -> Guest:
    files, record = wanted.files, read_record(wanted.files)
    if record is not None and not fresh and not (unused and record.ran):
        reason = _unusable(wanted, record, checkpoint, kept)
        if reason is None:
            try:
                with timed.part("connect"):
                    shell = _shell(host, files, record, stack, Deadline(10 * wanted.patience))
                guest = Guest(files, record, shell)
                reason = _changed(guest, kept, Deadline(10 * wanted.patience))
                if reason is None:
                    return guest
            except GuestUnreachable as error:
                reason = error.message
        report(Note(wanted.spec.name, f"restored, because {printable(reason)}"))
    return _restore_or_remake(host, wanted, base, checkpoint, report, stack, timed)


def _restore_or_remake(
    host: Host,
    wanted: Plan,
    base: Base,
    checkpoint: str,
    report: EventSink,
    stack: contextlib.ExitStack,
    timed: Timings,
) -> Guest:
    """Restore the guest; a checkpoint that fails twice is made anew, unless others read it."""
    try:
        return _restore(host, wanted, base, checkpoint, report, stack, timed)
    except (HypervisorError, GuestUnreachable) as error:
        command.check_cancelled()
        report(Note(wanted.spec.name, f"the restore failed, so it is tried once more ({error.message})"))
    try:
        return _restore(host, wanted, base, checkpoint, report, stack, timed)
    except HypervisorUnavailable:
        raise  # which says nothing of the checkpoint
    except (HypervisorError, GuestUnreachable) as error:
        command.check_cancelled()
        stop(host, wanted.lab, wanted.spec.name)
        if not remove_checkpoint(checkpoint, wanted.spec.name, report):
            raise
        report(Note(wanted.spec.name, f"the checkpoint does not restore, so it is made anew ({error.message})"))
    ensure_checkpoint(host, wanted, base, report)
    return _restore(host, wanted, base, checkpoint, report, stack, timed)


def _changed(guest: Guest, kept: bool, deadline: Deadline) -> str | None:
    """What was done to a running guest since it was restored that a run could not be told apart from."""
    now, record = guest.read_kernel_state(deadline), guest.record
    if alarming := find_unexplained(now.taint & ~record.taint, ()):
        return f"its kernel is tainted: {alarming[0].name} ({alarming[0].meaning})"
    left = sorted(now.out_of_tree - set(record.out_of_tree))
    if left and not kept:
        return f"the module {left[0]} is loaded in it"
    return None


def _unusable(wanted: Plan, record: GuestRecord, checkpoint: str, kept: bool) -> str | None:
    """Why a running guest may not be taken as it is."""
    if record.checkpoint != checkpoint or record.uri != wanted.lab.libvirt:
        return "the lab's settings have changed"
    if record.pid is None or not hypervisor.alive(record.pid, wanted.files.root):
        return "it was not running any more"
    if record.state == "busy":
        return "its last run was cut off"
    if record.state == "kept" and not kept:
        return "modules were left loaded in it"
    if record.state == "dirty":
        return record.reason or "the last module left it dirty"
    return None


def _shell(
    host: Host, files: paths.GuestFiles, record: GuestRecord, stack: contextlib.ExitStack, deadline: Deadline
) -> Shell:
    """Over the channel to the guest's agent; over ssh where that does not answer."""
    with contextlib.suppress(GuestUnreachable):
        return stack.enter_context(host.agent(files.agent, deadline.within(_AGENT_PATIENCE)))
    return stack.enter_context(host.shell(record.port, record.host_key, paths.identity_key(), deadline))


def _restore(
    host: Host,
    wanted: Plan,
    base: Base,
    checkpoint: str,
    report: EventSink,
    stack: contextlib.ExitStack,
    timed: Timings,
) -> Guest:
    files, source = wanted.files, paths.checkpoints() / checkpoint
    deadline = Deadline(RESTORE_PATIENCE * wanted.patience)
    with Stage(report, wanted.spec.name, "restoring the guest") as stage, read_checkpoint(checkpoint):
        with timed.part("restore"):
            stop(host, wanted.lab, wanted.spec.name)
            paths.require_space(paths.state_home(), 512 << 20, f"guest '{wanted.spec.name}'")
            for stale in (files.disk, files.console, files.record):
                stale.unlink(missing_ok=True)
            paths.remove_tree(files.synced)
            paths.make_folder(files.root, 0o700)
            disks.make_overlay(files.disk, source / "disk.qcow2", deadline)
            disks.copy(source / "nvram.fd", files.nvram)
            with host.hypervisor(wanted.lab.libvirt, files.libvirt, deadline) as hv:

                def ours(saved: str) -> str:
                    return retarget(saved, nvram=files.nvram, disk=files.disk, console=files.console, agent=files.agent)

                hv.restore(source / "memory", ours)
                if not os.access(files.console, os.R_OK):
                    hv.stop(wanted.domain_name)
                    raise LabError(
                        f"libvirt at {wanted.lab.libvirt} writes the guest's console so that you may not read it",
                        "use `libvirt: embedded` or qemu:///session, where QEMU runs as you",
                    )
                port = hv.forward(wanted.domain_name, SSH)
                live = hv.xml(wanted.domain_name)
        pids = hypervisor.processes(files.root)
        record = GuestRecord(
            name=wanted.spec.name,
            uri=wanted.lab.libvirt,
            domain=wanted.domain_name,
            arch=wanted.arch,
            release=base.release,
            accel=wanted.acceleration.name,
            why=wanted.acceleration.why,
            firmware=wanted.firmware.why,
            base=base.key,
            checkpoint=checkpoint,
            port=port,
            host_key=base.host_key,
            tty=console_tty(live),
            pid=pids[0] if pids else None,
            started=time.time(),
        )
        paths.write_text(files.known_hosts, known_hosts_line(port, base.host_key), 0o600)
        write_record(files, record)
        _keep_keyring(files, checkpoint)
        with timed.part("connect"):
            guest = Guest(files, record, _shell(host, files, record, stack, deadline))
            guest.wake(deadline)
        stage.detail = f"kernel {base.release}, {wanted.acceleration.name}"
    return guest


def enrol_by_mokmanager(host: Host, lab: Lab, spec: GuestSpec, report: EventSink) -> str:
    """Make the guest's checkpoint anew, the lab's key enrolled in it through MokManager's screens; its key."""
    with locks.held(lab_files(lab).guest(spec.name).lock, spec.name, report, Deadline(LOCK_PATIENCE)):
        stop(host, lab, spec.name)
        wanted = plan(host, lab, spec)
        base = ensure_base(host, wanted, report)
        checkpoint = ensure_checkpoint(host, wanted, base, report, by_mokmanager=True)
        _keep_keyring(wanted.files, checkpoint)
        return checkpoint


def _keep_keyring(files: paths.GuestFiles, checkpoint: str) -> None:
    known = paths.read_json(paths.checkpoints() / checkpoint / "checkpoint.json")
    paths.write_json(files.keyring, known.get("keyring") if isinstance(known, dict) else None)


def stop(host: Host, lab: Lab, name: str) -> bool:
    """End the guest at once, whatever state it is in; whether there was one."""
    files = lab_files(lab).guest(name)
    record = read_record(files)
    found = bool(hypervisor.processes(files.root))
    if record is not None and record.uri != hypervisor.EMBEDDED:
        with contextlib.suppress(LabError), host.hypervisor(record.uri, files.libvirt, Deadline(20)) as hv:
            hv.stop(record.domain)
    hypervisor.kill(files.root)
    if record is None or record.uri == hypervisor.EMBEDDED:
        # Nobody else has this root open: asking libvirt to end QEMU gently takes it one to two seconds.
        paths.remove_tree(files.libvirt)
    if record is not None:
        files.record.unlink(missing_ok=True)
    return found


def take_down(host: Host, lab: Lab, name: str, report: EventSink) -> bool:
    """Stop the guest when nobody works in it; whether it was running."""
    with locks.held(lab_files(lab).guest(name).lock, name, report, Deadline(LOCK_PATIENCE)):
        return stop(host, lab, name)


def destroy_lab(host: Host, lab: Lab, names: Sequence[str], *, all_state: bool, report: EventSink) -> list[str]:
    """Nothing of these guests is left, or of any guest if none is named: domain, process, sockets, disks."""
    files = lab_files(lab)
    known = {*lab.guests, *files.guests()}
    for name in names:
        if name not in known:
            lab.guest(name)
    gone = []
    for name in sorted(names or known):
        guest = files.guest(name)
        if not guest.root.exists() and not hypervisor.processes(guest.root):
            continue
        with locks.held(guest.lock, name, report, Deadline(LOCK_PATIENCE)):
            stop(host, lab, name)
            paths.remove_tree(guest.root)
        guest.lock.unlink(missing_ok=True)
        gone.append(name)
    if not names:
        paths.remove_tree(files.root)
        sweep()
    if all_state:
        gone += _destroy_state(files)
    return gone


def _destroy_state(files: paths.LabFiles) -> list[str]:
    """The lab's keys, and all that no other lab's guest stands on."""
    for keys in (files.keys, *files.keys.parent.glob(f"{files.keys.name}{paths.SET_ASIDE}*")):
        paths.remove_tree(keys)
    if list((paths.state_home() / "labs").glob("*/*/guest.json")):
        return ["its keys (guests of other labs stand on the cached bases)"]
    paths.remove_tree(paths.cache_home())
    paths.remove_tree(paths.state_home())
    return ["keys, images, bases, checkpoints and toolchains"]
