"""Start, restore, stop and destroy guests: image → base → checkpoint → guest.

The image, the base and the checkpoint are made once and kept; the other folders of this room make them.
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
from kmlab.provision.bases.checkpoint import ensure_checkpoint, read_checkpoint, readers_lock, remove_checkpoint
from kmlab.provision.bases.toolchain import Target, check_toolchain, sweep_toolchains, toolchain_for
from kmlab.provision.guest import Guest, GuestRecord, read_record, write_record
from kmlab.provision.hot_plug import changed_by_hand, plug_configured, wait_until_seen, words_of
from kmlab.provision.images.archive_kernel import available, check_kernels
from kmlab.provision.images.image import build_image, catalogue_image, guest_image
from kmlab.provision.kernels.built_kernel import with_built_kernel
from kmlab.provision.lease import end_lease, leased, take_lease
from kmlab.provision.plan.artifact import LOCK_PATIENCE, SSH, check_artifact, sweep
from kmlab.provision.plan.device_setup import check_devices, make_files
from kmlab.provision.plan.plan import Plan, arch_of, lab_files, make_plan
from kmlab.virt import network
from kmlab.virt.domain import console_tty, retarget

__all__ = [
    "arch_of",
    "available",
    "build_image",
    "catalogue_image",
    "check_artifact",
    "check_kernels",
    "check_toolchain",
    "destroy_lab",
    "enrol_by_mokmanager",
    "guest_image",
    "guest_session",
    "lab_files",
    "readers_lock",
    "stop",
    "sweep",
    "sweep_toolchains",
    "take_down",
    "toolchain_for",
]

RESTORE_PATIENCE = 30.0
_AGENT_PATIENCE = 5.0
"""Seconds to wait for the agent, which normally answers within milliseconds."""


@contextlib.contextmanager
def guest_session(
    host: Host,
    lab: Lab,
    spec: GuestSpec,
    report: EventSink,
    *,
    fresh: bool = False,
    unused: bool = False,
    allow_kept_modules: bool = False,
    while_restoring: Callable[[Target], AbstractContextManager[None]] | None = None,
    timings: Timings | None = None,
) -> Iterator[Guest]:
    """Yield the guest, running and clean, with a shell and locked for this process.

    A running, clean guest is reused, unless `fresh` is set, or `unused` is set and a module has run in it.
    `allow_kept_modules` also reuses a guest with modules left loaded. `while_restoring` starts work that needs only the
    base, before the guest is restored. `timings` gets the parts lock, plan, kernel, base, checkpoint, restore
    and connect.
    """
    files, timings = lab_files(lab).guest(spec.name), timings or Timings()
    with contextlib.ExitStack() as stack:
        with timings.part("lock"):
            stack.enter_context(locks.held(files.lock, spec.name, report, Deadline(LOCK_PATIENCE)))
        with timings.part("plan"):
            plan = make_plan(host, lab, spec)
            check_devices(plan)
        with timings.part("kernel"):
            plan = with_built_kernel(host, plan, report)
        with timings.part("base"):
            base = ensure_base(host, plan, report)
            _lease_during_start(files, base, stack)
        with timings.part("checkpoint"):
            checkpoint = ensure_checkpoint(host, plan, base, report)
            take_lease(files, base=base.key, checkpoint=checkpoint)
        if while_restoring is not None:
            pending = PendingGuest(spec.name, plan.arch, plan.acceleration.name, base.key, base.release)
            stack.enter_context(while_restoring(pending))
        start = _Start(host, plan, base, checkpoint, report, stack, timings)
        yield _reuse_or_restore(start, fresh=fresh, unused=unused, allow_kept_modules=allow_kept_modules)


def _lease_during_start(files: paths.GuestFiles, base: Base, stack: contextlib.ExitStack) -> None:
    """Lease the base until the guest itself does; end the lease if no guest comes of it."""

    def end() -> None:
        if read_record(files) is None:
            end_lease(files)

    stack.callback(end)
    take_lease(files, base=base.key)


class PendingGuest(NamedTuple):
    """A guest that is not restored yet, as a Target."""

    name: str
    arch: str
    accel: str
    base: str
    release: str


class _Start(NamedTuple):
    """What a guest starts from, and what its start is reported and measured with."""

    host: Host
    plan: Plan
    base: Base
    checkpoint: str
    report: EventSink
    stack: contextlib.ExitStack
    timings: Timings


def _reuse_or_restore(start: _Start, *, fresh: bool, unused: bool, allow_kept_modules: bool) -> Guest:
    host, plan, _, checkpoint, report, stack, timings = start
    files, record = plan.files, read_record(plan.files)
    if record is not None and not fresh and not (unused and record.ran):
        reason = _why_unusable(plan, record, checkpoint, allow_kept_modules)
        if reason is None:
            try:
                with timings.part("connect"):
                    shell = _connect(host, files, record, stack, Deadline(10 * plan.patience))
                guest = Guest(files, record, shell)
                reason = _why_changed(guest, allow_kept_modules, Deadline(10 * plan.patience))
                if reason is None:
                    return guest
            except GuestUnreachable as error:
                reason = error.message
        report(Note(plan.spec.name, f"restored, because {printable(reason)}"))
    return _restore_or_remake(start)


def _restore_or_remake(start: _Start) -> Guest:
    """Restore the guest. Rebuild a checkpoint that fails twice, unless other guests use it."""
    host, plan, base, checkpoint, report, _, _ = start
    try:
        return _restore(start)
    except (HypervisorError, GuestUnreachable) as error:
        command.check_cancelled()
        report(Note(plan.spec.name, f"the restore failed: retrying once ({error.message})"))
    try:
        return _restore(start)
    except HypervisorUnavailable:
        raise  # the checkpoint is not the cause
    except (HypervisorError, GuestUnreachable) as error:
        command.check_cancelled()
        stop(host, plan.lab, plan.spec.name)
        if not remove_checkpoint(checkpoint, plan.spec.name, report):
            raise
        report(Note(plan.spec.name, f"the checkpoint cannot be restored: rebuilding it ({error.message})"))
    ensure_checkpoint(host, plan, base, report)
    return _restore(start)


def _why_changed(guest: Guest, allow_kept_modules: bool, deadline: Deadline) -> str | None:
    """Return a change since the restore that a run could take for its own effect; None if there is none."""
    now, record = guest.read_kernel_state(deadline), guest.record
    if unexplained := find_unexplained(now.taint & ~record.taint, ()):
        return f"its kernel is tainted: {unexplained[0].name} ({unexplained[0].meaning})"
    loaded = sorted(now.out_of_tree - set(record.out_of_tree))
    if loaded and not allow_kept_modules:
        return f"the module {loaded[0]} is loaded in it"
    return None


def _why_unusable(plan: Plan, record: GuestRecord, checkpoint: str, allow_kept_modules: bool) -> str | None:
    """Return why a running guest cannot be reused; None if it can."""
    settings = (checkpoint, plan.lab.libvirt, plan.spec.network, _forward_words(plan.spec), _device_words(plan.spec))
    now = (record.checkpoint, record.uri, record.network, list(record.forward), list(record.devices))
    if now != settings:
        return "the lab's settings have changed"
    if record.pid is None or not hypervisor.alive(record.pid, plan.files.root):
        return "it no longer runs"
    if not allow_kept_modules and changed_by_hand(plan.files, plan.spec):
        return "its devices were changed"
    if record.state == "busy":
        return "its last run was interrupted"
    if record.state == "kept" and not allow_kept_modules:
        return "modules were left loaded in it"
    if record.state == "dirty":
        return record.reason or "the last module left it dirty"
    return None


def _connect(
    host: Host, files: paths.GuestFiles, record: GuestRecord, stack: contextlib.ExitStack, deadline: Deadline
) -> Shell:
    """Connect through the guest's agent, or over ssh if the agent does not answer."""
    try:
        return stack.enter_context(host.agent(files.agent, deadline.within(_AGENT_PATIENCE)))
    except GuestUnreachable:
        if record.port is None:
            raise
    return stack.enter_context(host.shell(record.port, record.host_key, paths.identity_key(), deadline))


def _restore(start: _Start) -> Guest:
    host, plan, base, checkpoint, report, stack, timings = start
    files, source = plan.files, paths.checkpoints() / checkpoint
    deadline = Deadline(RESTORE_PATIENCE * plan.patience)
    with Stage(report, plan.spec.name, "restoring the guest") as stage, read_checkpoint(checkpoint):
        with timings.part("restore"):
            stop(host, plan.lab, plan.spec.name)
            take_lease(files, base=base.key, checkpoint=checkpoint)
            paths.require_space(paths.state_home(), 512 << 20, f"guest '{plan.spec.name}'")
            for stale in (files.disk, files.console, files.record, *files.root.glob("device-*.img")):
                stale.unlink(missing_ok=True)
            paths.remove_tree(files.synced)
            paths.make_folder(files.root, 0o700)
            disks.make_overlay(files.disk, source / "disk.qcow2", deadline)
            disks.copy(source / "nvram.fd", files.nvram)
            make_files(plan.spec.named_devices, files.root)
            with host.hypervisor(plan.lab.libvirt, files.libvirt, deadline) as hv:

                def change_files(saved: str) -> str:
                    return retarget(
                        saved,
                        nvram=files.nvram,
                        disk=files.disk,
                        console=files.console,
                        agent=files.agent,
                        reach=plan.spec.network,
                    )

                hv.restore(source / "memory", change_files)
                if not os.access(files.console, os.R_OK):
                    hv.stop(plan.domain_name)
                    raise LabError(
                        f"cannot read the guest's console log: libvirt at {plan.lab.libvirt} gives you no permission",
                        "use `libvirt: embedded` or qemu:///session, where QEMU runs as you",
                    )
                port, forwarded = _open_network(hv, plan)
                plug_configured(hv, plan)
                live = hv.xml(plan.domain_name)
        pids = hypervisor.processes(files.root)
        record = GuestRecord(
            name=plan.spec.name,
            uri=plan.lab.libvirt,
            domain=plan.domain_name,
            arch=plan.arch,
            release=base.release,
            accel=plan.acceleration.name,
            nested=plan.acceleration.nested,
            why=plan.acceleration.why,
            firmware=plan.firmware.why,
            base=base.key,
            checkpoint=checkpoint,
            port=port,
            network=plan.spec.network,
            forward=_forward_words(plan.spec),
            forwarded=forwarded,
            devices=_device_words(plan.spec),
            host_key=base.host_key,
            tty=console_tty(live),
            pid=pids[0] if pids else None,
            started=time.time(),
        )
        if port is not None:
            paths.write_text(files.known_hosts, known_hosts_line(port, base.host_key), 0o600)
        write_record(files, record)
        _store_keyring(files, checkpoint)
        with timings.part("connect"):
            guest = Guest(files, record, _connect(host, files, record, stack, deadline))
            guest.wake(deadline)
            wait_until_seen(guest, report)
        stage.detail = f"kernel {base.release}, {plan.acceleration.name}"
    return guest


def _open_network(hv: hypervisor.Hypervisor, plan: Plan) -> tuple[int | None, dict[str, int]]:
    """Forward a port of the host to the guest's sshd, and those of `forward:`; without a network, unplug the cable.

    Return the port of the sshd, and of each other forwarded port of the guest.
    """
    name, netdev = plan.domain_name, network.NETDEV
    if plan.spec.network == network.NONE:
        hv.unplug(name, netdev)
        return None, {}
    port = hv.forward(name, netdev, SSH)
    return port, {str(guest): hv.forward(name, netdev, guest, host) for host, guest in plan.spec.forward}


def _device_words(spec: GuestSpec) -> list[str]:
    return [words_of(device) for device in spec.devices]


def _forward_words(spec: GuestSpec) -> list[str]:
    return [f"{host}:{guest}" for host, guest in spec.forward]


def enrol_by_mokmanager(host: Host, lab: Lab, spec: GuestSpec, report: EventSink) -> str:
    """Rebuild the guest's checkpoint, with the lab's key enrolled through MokManager. Return the checkpoint's key."""
    with locks.held(lab_files(lab).guest(spec.name).lock, spec.name, report, Deadline(LOCK_PATIENCE)):
        stop(host, lab, spec.name)
        plan = with_built_kernel(host, make_plan(host, lab, spec), report)
        check_devices(plan)
        base = ensure_base(host, plan, report)
        checkpoint = ensure_checkpoint(host, plan, base, report, by_mokmanager=True)
        _store_keyring(plan.files, checkpoint)
        return checkpoint


def _store_keyring(files: paths.GuestFiles, checkpoint: str) -> None:
    about = paths.read_json(paths.checkpoints() / checkpoint / "checkpoint.json")
    paths.write_json(files.keyring, about.get("keyring") if isinstance(about, dict) else None)


def stop(host: Host, lab: Lab, name: str) -> bool:
    """Kill the guest at once, in any state. Return whether it was running."""
    files = lab_files(lab).guest(name)
    record = read_record(files)
    was_running = bool(hypervisor.processes(files.root))
    if record is not None and record.uri != hypervisor.EMBEDDED:
        with contextlib.suppress(LabError), host.hypervisor(record.uri, files.libvirt, Deadline(20)) as hv:
            hv.stop(record.domain)
    hypervisor.kill_workers(files.libvirt)
    hypervisor.kill(files.root)
    if record is None or record.uri == hypervisor.EMBEDDED:
        # No other process has this root open. Asking libvirt to stop QEMU would take one to two seconds.
        paths.remove_tree(files.libvirt)
    if record is not None:
        files.record.unlink(missing_ok=True)
        end_lease(files)
    return was_running


def take_down(host: Host, lab: Lab, name: str, report: EventSink) -> bool:
    """Stop the guest when no other process uses it. Return whether it was running."""
    with locks.held(lab_files(lab).guest(name).lock, name, report, Deadline(LOCK_PATIENCE)):
        return stop(host, lab, name)


def destroy_lab(host: Host, lab: Lab, names: Sequence[str], *, all_state: bool, report: EventSink) -> list[str]:
    """Remove these guests, or all if none is named: domain, process, sockets, disks. Return what was removed."""
    files = lab_files(lab)
    all_names = {*lab.guests, *files.guests()}
    for name in names:
        if name not in all_names:
            lab.guest(name)
    removed = []
    for name in sorted(names or all_names):
        guest = files.guest(name)
        if not guest.root.exists() and not hypervisor.processes(guest.root):
            continue
        with locks.held(guest.lock, name, report, Deadline(LOCK_PATIENCE)):
            stop(host, lab, name)
            paths.remove_tree(guest.root)
        guest.lock.unlink(missing_ok=True)
        removed.append(name)
    if not names:
        paths.remove_tree(files.root)
        sweep()
    if all_state:
        removed += _destroy_state(files)
    return removed


def _destroy_state(files: paths.LabFiles) -> list[str]:
    """Remove the lab's keys, and the whole cache and state if no guest of another lab uses them."""
    for keys in (files.keys, *files.keys.parent.glob(f"{files.keys.name}{paths.SET_ASIDE}*")):
        paths.remove_tree(keys)
    if list((paths.state_home() / "labs").glob("*/*/guest.json")) or leased():
        return ["its keys (guests of other labs use the cached bases)"]
    paths.remove_tree(paths.cache_home())
    paths.remove_tree(paths.state_home())
    return ["keys, images, bases, checkpoints and toolchains"]
