"""Make the checkpoint: the saved memory of a booted, idle base, so that a guest starts within a second."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kmlab.common import paths
from kmlab.common.errors import LabError
from kmlab.common.events import Deadline, EventSink, Stage, printable
from kmlab.config import catalog
from kmlab.host import Host
from kmlab.host.channel.ssh import Shell
from kmlab.host.disk import disks, varstore
from kmlab.host.hypervisor import hypervisor
from kmlab.host.process import command, locks
from kmlab.provision.bases import mok_enrolment
from kmlab.provision.bases.base import Base
from kmlab.provision.bases.boot_watch import LONGEST_BOOT, shell_while_booting
from kmlab.provision.plan.artifact import (
    LOCK_PATIENCE,
    SSH,
    boot_twice,
    booted,
    check_artifact,
    parse_facts,
    read_console,
    record_artifact,
    sweep_key,
)
from kmlab.provision.plan.device_setup import make_files
from kmlab.provision.plan.plan import Plan
from kmlab.virt.domain import AGENT_PORT, cpu_model, to_xml
from kmlab.virt.network import NETDEV

if TYPE_CHECKING:
    from kmlab.kernel.signing.load_check import GuestKeyring

CHECKPOINT_FORMAT = 3
_AGENT = (
    "set -e; agent=/usr/local/lib/kmlab/agent; mkdir -p ${{agent%/*}}; gcc -O1 -x c -o $agent -; "
    "if [ -d /run/systemd/system ]; then "
    "systemd-run --quiet --unit=kmlab-agent --property=OOMScoreAdjust=-1000 --property=Restart=always "
    "$agent /dev/virtio-ports/{port}; else {{ echo -1000 > /proc/self/oom_score_adj; "
    "/usr/lib/kmlab/keep $agent /dev/virtio-ports/{port}; }} < /dev/null > /dev/null 2>&1 & fi"
)


def ensure_checkpoint(host: Host, plan: Plan, base: Base, report: EventSink, *, by_mokmanager: bool = False) -> str:
    """Return the key of this guest's checkpoint. Make the checkpoint if it does not exist.

    `by_mokmanager` always makes it, with the lab's key enrolled through MokManager.
    """
    key = checkpoint_key(plan, base)
    folder = paths.checkpoints() / key
    with locks.held(paths.work() / f"checkpoint-{key}.lock", plan.spec.name, report, Deadline(LOCK_PATIENCE)):
        if by_mokmanager or not (folder / "checkpoint.json").exists():
            needed = plan.spec.memory + (1 << 30)
            paths.require_space(paths.checkpoints(), needed, f"the checkpoint of '{plan.spec.name}'")
            with Stage(
                report, plan.spec.name, "making the checkpoint: booting the base once, saving its memory"
            ) as stage:
                sweep_key(key)

                def make() -> None:
                    with paths.atomic_folder(folder, paths.work()) as scratch:
                        facts = _save_booted(host, plan, base, scratch, stage, by_mokmanager)
                        others = [scratch / "disk.qcow2", scratch / "nvram.fd"]
                        record_artifact(scratch / "checkpoint.json", scratch / "memory", facts, others)

                boot_twice(make, plan.spec.name, report)
                stage.detail = f"{disks.size_on_disk(folder) / 2**20:.0f} MiB"
        check_artifact(folder / "checkpoint.json", folder / "memory")
    return key


@contextlib.contextmanager
def read_checkpoint(key: str) -> Iterator[None]:
    """Prevent the removal of a checkpoint during the block, which restores a guest from it."""
    with locks.shared(readers_lock(key)):
        yield


def remove_checkpoint(key: str, subject: str, report: EventSink) -> bool:
    """Remove a broken checkpoint. Return False and keep it if any guest uses it or is being restored from it."""
    folder = paths.checkpoints() / key
    with (
        locks.held(paths.work() / f"checkpoint-{key}.lock", subject, report, Deadline(LOCK_PATIENCE)),
        locks.exclusive(readers_lock(key)) as unused,
    ):
        if not unused or hypervisor.processes_reading(folder):
            return False
        paths.remove_tree(folder)
        return True


def readers_lock(key: str) -> Path:
    """Return the lock that all who restore from a checkpoint share."""
    return paths.work() / f"checkpoint-{key}.reading"


def checkpoint_key(plan: Plan, base: Base) -> str:
    """Return the key of a checkpoint: a digest of its base and of everything that a restore depends on."""
    qemu = command.find(command.emulator(plan.arch))
    place = Path("/")
    return paths.digest_of(
        CHECKPOINT_FORMAT,
        base.key,
        to_xml(plan.domain(place), qemu),
        plan.qemu,
        _host_cpu(read_console(Path("/proc/cpuinfo"))) if plan.acceleration.name == "kvm" else cpu_model("tcg"),
        plan.recipe.idle,
        catalog.agent_source(),
        _AGENT,
        dict(plan.spec.sysctls),
        plan.watchdogs.settings(),
        _enrolled(plan),
    )


def _enrolled(plan: Plan) -> list[object]:
    """Return the digests that determine its initial UEFI variables, if they are not the base's."""
    if plan.certificate is None:
        return []
    return [varstore.STORE_FORMAT, disks.digest(plan.certificate), disks.digest(plan.firmware.variables)]


def _save_booted(
    host: Host, plan: Plan, base: Base, folder: Path, stage: Stage, by_mokmanager: bool
) -> dict[str, object]:
    from kmlab.kernel.signing.guest_keyring import QUESTION, parse_keyring, to_json

    deadline = Deadline(LONGEST_BOOT * plan.patience)
    disks.make_overlay(folder / "disk.qcow2", base.folder / "disk.qcow2", deadline)
    if plan.certificate is None:
        disks.copy(base.folder / "nvram.fd", folder / "nvram.fd")
    elif by_mokmanager:
        disks.copy(plan.firmware.variables, folder / "nvram.fd")
        _enrol_by_mokmanager(host, plan, base, folder, plan.certificate, stage)
    else:
        varstore.make_store(
            plan.firmware.variables,
            plan.certificate,
            folder / "nvram.fd",
            deadline,
            enrolled=plan.firmware.enrolled,
            format=plan.firmware.variables_format,
        )
    domain = plan.domain(folder)
    empty = make_files(domain.devices, folder, in_checkpoint=True)
    with booted(host, plan, domain, folder, deadline) as hv:
        port = hv.forward(domain.name, NETDEV, SSH)
        with shell_while_booting(host, plan, base, folder, port, stage, deadline) as shell:
            stage.progress(detail="waiting for the guest to be idle")
            variables = plan.watchdogs.settings()
            settings = "".join(f"{name}={value}\n" for name, value in variables.items())
            sysctls = "".join(
                f"sysctl --quiet --write {shlex.quote(f'{k}={v}')} || exit 1\n" for k, v in plan.spec.sysctls.items()
            )
            _start_agent(plan, shell, deadline)
            answer = shell.run("sh", deadline, data=(settings + sysctls + plan.recipe.idle).encode())
            facts = parse_facts(answer.text)
            if not answer.ok:
                message = printable(answer.error_text.strip(), 300)
                raise LabError(f"guest '{plan.spec.name}' could not be made ready: {message}")
            if facts.get("release") != base.release:
                raise LabError(
                    f"guest '{plan.spec.name}' booted kernel {facts.get('release')} and not {base.release}",
                    "kmlab image prune, then kmlab up",
                )
            # Every guest of this checkpoint has its kernel at the same addresses.
            (folder / "kallsyms").write_bytes(shell.run("cat /proc/kallsyms", deadline).out)
            keyring = parse_keyring(plan.spec.name, shell.run(QUESTION, deadline).text)
            require_enrolled(plan, keyring)
        stage.progress(detail="saving its memory")
        hv.save(domain.name, folder / "memory")
    for file in empty:
        file.unlink()
    (folder / "console.log").rename(folder / "boot.log")
    return {**facts, "keyring": to_json(keyring)}


def _enrol_by_mokmanager(host: Host, plan: Plan, base: Base, folder: Path, certificate: Path, stage: Stage) -> None:
    """Boot once to request the enrolment, and once to answer MokManager. The UEFI variables are in `folder`."""
    deadline = Deadline(2 * LONGEST_BOOT * plan.patience)
    domain = plan.domain(folder)
    make_files(domain.devices, folder, in_checkpoint=True)
    with booted(host, plan, domain, folder, deadline) as hv:
        port = hv.forward(domain.name, NETDEV, SSH)
        with shell_while_booting(host, plan, base, folder, port, stage, deadline) as shell:
            password = mok_enrolment.request_enrolment(shell, certificate, deadline)
        mok_enrolment.wait_until_off(hv, domain.name, deadline)
    with booted(host, plan, domain, folder, deadline) as hv:
        mok_enrolment.answer_screens(hv, domain.name, password, stage, deadline)
        mok_enrolment.wait_until_off(hv, domain.name, deadline)


def require_enrolled(plan: Plan, keyring: GuestKeyring) -> None:
    """Raise LabError if a guest with Secure Boot does not enforce it, or if its kernel does not have the lab's key."""
    if plan.certificate is None:
        return
    name = plan.spec.name
    # Either refuses unsigned modules. Ubuntu's kernels 5.4 to 5.15 only lock down; others only set sig_enforce.
    if not (keyring.secure_boot and (keyring.sig_enforce or keyring.lockdown not in ("", "none"))):
        raise LabError(
            f"guest '{name}' booted without enforcing Secure Boot: firmware {'on' if keyring.secure_boot else 'off'}, "
            f"sig_enforce {keyring.sig_enforce}, lockdown {keyring.lockdown}",
            f"use a kernel that the distribution signed; the console log: {paths.failed_boot()}",
        )
    from kmlab.kernel.signing.guest_keyring import der

    if disks.digest(plan.certificate) not in [hashlib.sha256(der(c)).hexdigest() for c in keyring.certificates]:
        raise LabError(
            f"guest '{name}': its kernel has not loaded the lab's certificate, {plan.certificate}",
            'look for "Problem loading X.509 certificate" in the console log: ' + str(paths.failed_boot()),
        )


def _start_agent(plan: Plan, shell: Shell, deadline: Deadline) -> None:
    """Compile the agent with the guest's compiler, and start it. Every restored guest then has it."""
    answer = shell.run(_AGENT.format(port=AGENT_PORT), deadline, data=catalog.agent_source().encode())
    if not answer.ok:
        message = printable(answer.error_text.strip(), 300)
        raise LabError(f"guest '{plan.spec.name}' could not start the agent: {message}")


def _host_cpu(cpuinfo: str, kernel: str = platform.release()) -> str:
    """Return a digest of what a guest with the host's own CPU depends on: the CPU, and the host's kernel.

    The kernel decides which features KVM offers (qemu-cpu-models(7)). arm64 has numbers instead of a name.
    """
    names = (
        "model name",
        "flags",
        "microcode",
        "CPU implementer",
        "CPU part",
        "CPU variant",
        "CPU revision",
        "Features",
    )
    fields: dict[str, str] = {"kernel": kernel}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            fields.setdefault(name.strip(), value.strip())
    return paths.digest_of(fields)
