"""The checkpoint: a base booted to idle, its memory saved, so that a guest starts in a second."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kmlab.common import paths
from kmlab.common.errors import GuestUnreachable, LabError
from kmlab.common.events import Deadline, EventSink, Stage, printable
from kmlab.config import catalog
from kmlab.host import Host
from kmlab.host.channel.ssh import Shell
from kmlab.host.disk import disks, varstore
from kmlab.host.hypervisor import hypervisor
from kmlab.host.process import command, locks
from kmlab.kernel.crash.watchdogs import ladder
from kmlab.provision.bases import mok_enrolment
from kmlab.provision.bases.base import Base
from kmlab.provision.plan.artifact import (
    BOOT_PATIENCE,
    LOCK_PATIENCE,
    SSH,
    boot_twice,
    booted,
    check,
    last_line,
    parse_facts,
    read_console,
    record,
    require_disk_space,
    require_firmware_output,
    require_no_panic,
    require_trust,
    sweep_key,
)
from kmlab.provision.plan.plan import Plan
from kmlab.virt import firmware
from kmlab.virt.domain import AGENT_PORT, cpu_model, to_xml

if TYPE_CHECKING:
    from kmlab.kernel.signing.load_check import GuestKeyring

CHECKPOINT_FORMAT = 3
_AGENT = (
    "set -e; mkdir -p /usr/local/lib/kmlab; gcc -O1 -x c -o /usr/local/lib/kmlab/agent -; "
    "systemd-run --quiet --unit=kmlab-agent --property=OOMScoreAdjust=-1000 --property=Restart=always "
    "/usr/local/lib/kmlab/agent /dev/virtio-ports/{port}"
)


def ensure_checkpoint(host: Host, wanted: Plan, base: Base, report: EventSink, *, by_mokmanager: bool = False) -> str:
    """The key of the checkpoint of this guest, made when it is not there.

    `by_mokmanager`: made in any case, with its key enrolled as a person would do it.
    """
    key = checkpoint_key(wanted, base)
    folder = paths.checkpoints() / key
    with locks.held(paths.work() / f"checkpoint-{key}.lock", wanted.spec.name, report, Deadline(LOCK_PATIENCE)):
        if by_mokmanager or not (folder / "checkpoint.json").exists():
            needed = wanted.spec.memory + (1 << 30)
            paths.require_space(paths.checkpoints(), needed, f"the checkpoint of '{wanted.spec.name}'")
            with Stage(
                report, wanted.spec.name, "making the checkpoint: booting the base once, saving its memory"
            ) as stage:
                sweep_key(key)

                def make() -> None:
                    with paths.published(folder, paths.work()) as half:
                        facts = _save_booted(host, wanted, base, half, stage, by_mokmanager)
                        record(half / "checkpoint.json", half / "memory", facts)
                        for made in ("disk.qcow2", "nvram.fd", "memory"):
                            disks.freeze(half / made)

                boot_twice(make, wanted.spec.name, report)
                stage.detail = f"{disks.size_on_disk(folder) / 2**20:.0f} MiB"
        check(folder / "checkpoint.json", folder / "memory")
    return key


@contextlib.contextmanager
def read_checkpoint(key: str) -> Iterator[None]:
    """Keep a checkpoint from being removed while a guest is restored from it."""
    with locks.shared(_reading(key)):
        yield


def remove_checkpoint(key: str, subject: str, report: EventSink) -> bool:
    """Remove a checkpoint that does not restore; False if a guest of any lab stands on it or is restored from it."""
    folder = paths.checkpoints() / key
    with (
        locks.held(paths.work() / f"checkpoint-{key}.lock", subject, report, Deadline(LOCK_PATIENCE)),
        locks.exclusive(_reading(key)) as alone,
    ):
        if not alone or hypervisor.processes_reading(folder):
            return False
        paths.remove_tree(folder)
        return True


def _reading(key: str) -> Path:
    return paths.work() / f"checkpoint-{key}.reading"


def checkpoint_key(wanted: Plan, base: Base) -> str:
    """The name of a checkpoint: its base, and whatever would keep it from being restored."""
    qemu = command.find(command.emulator(wanted.arch))
    place = Path("/")
    return paths.digest_of(
        CHECKPOINT_FORMAT,
        base.key,
        to_xml(wanted.domain(place), qemu),
        wanted.qemu,
        _host_cpu() if wanted.acceleration.name == "kvm" else cpu_model("tcg"),
        wanted.recipe.idle,
        catalog.agent_source(),
        _AGENT,
        dict(wanted.spec.sysctls),
        ladder(wanted.acceleration.name).settings(),
        _enrolled(wanted),
    )


def _enrolled(wanted: Plan) -> list[str]:
    """What its store of UEFI variables begins with, where that is not the base's."""
    if wanted.certificate is None:
        return []
    return [disks.digest(wanted.certificate), disks.digest(wanted.firmware.variables)]


def _save_booted(
    host: Host, wanted: Plan, base: Base, folder: Path, stage: Stage, by_mokmanager: bool
) -> dict[str, object]:
    from kmlab.kernel.signing.guest_keyring import QUESTION, parse_keyring, to_json

    deadline = Deadline(BOOT_PATIENCE * wanted.patience)
    disks.make_overlay(folder / "disk.qcow2", base.folder / "disk.qcow2", deadline)
    if wanted.certificate is None:
        disks.copy(base.folder / "nvram.fd", folder / "nvram.fd")
    elif by_mokmanager:
        disks.copy(wanted.firmware.variables, folder / "nvram.fd")
        _enrol_by_mokmanager(host, wanted, base, folder, wanted.certificate, stage)
    else:
        varstore.make_store(wanted.firmware.variables, wanted.certificate, folder / "nvram.fd", deadline)
    domain = wanted.domain(folder)
    with booted(host, wanted, domain, folder, deadline) as hv:
        port = hv.forward(domain.name, SSH)
        with _shell_while_booting(host, wanted, base, folder, port, stage, deadline) as shell:
            stage.progress(detail="waiting for the guest to be idle")
            variables = ladder(wanted.acceleration.name).settings()
            settings = "".join(f"{name}={value}\n" for name, value in variables.items())
            sysctls = "".join(
                f"sysctl --quiet --write {shlex.quote(f'{k}={v}')} || exit 1\n" for k, v in wanted.spec.sysctls.items()
            )
            _start_agent(wanted, shell, deadline)
            answer = shell.run("sh", deadline, data=(settings + sysctls + wanted.recipe.idle).encode())
            facts = parse_facts(answer.text)
            if not answer.ok:
                said = printable(answer.error_text.strip(), 300)
                raise LabError(f"guest '{wanted.spec.name}' could not be made ready: {said}")
            if facts.get("release") != base.release:
                raise LabError(
                    f"guest '{wanted.spec.name}' booted kernel {facts.get('release')} and not {base.release}",
                    "kmlab image prune, then kmlab up",
                )
            # Every guest of this checkpoint has its kernel at these very addresses.
            (folder / "kallsyms").write_bytes(shell.run("cat /proc/kallsyms", deadline).out)
            keyring = parse_keyring(wanted.spec.name, shell.run(QUESTION, deadline).text)
            require_enrolled(wanted, keyring)
        stage.progress(detail="saving its memory")
        hv.save(domain.name, folder / "memory")
    (folder / "console.log").rename(folder / "boot.log")
    return {**facts, "keyring": to_json(keyring)}


def _enrol_by_mokmanager(host: Host, wanted: Plan, base: Base, folder: Path, certificate: Path, stage: Stage) -> None:
    """One boot to ask for the certificate, one to answer MokManager; both leave the store of variables in `folder`."""
    deadline = Deadline(2 * BOOT_PATIENCE * wanted.patience)
    domain = wanted.domain(folder)
    with booted(host, wanted, domain, folder, deadline) as hv:
        port = hv.forward(domain.name, SSH)
        with _shell_while_booting(host, wanted, base, folder, port, stage, deadline) as shell:
            password = mok_enrolment.ask_for(shell, certificate, deadline)
        mok_enrolment.wait_until_off(hv, domain.name, deadline)
    with booted(host, wanted, domain, folder, deadline) as hv:
        mok_enrolment.answer_screens(hv, domain.name, password, stage, deadline)
        mok_enrolment.wait_until_off(hv, domain.name, deadline)


def require_enrolled(wanted: Plan, keyring: GuestKeyring) -> None:
    """LabError unless a guest that was asked to have Secure Boot has it, and its kernel has the lab's key."""
    if wanted.certificate is None:
        return
    name = wanted.spec.name
    if not (keyring.secure_boot and keyring.sig_enforce and keyring.lockdown == "integrity"):
        raise LabError(
            f"guest '{name}' booted without Secure Boot in force: firmware {'on' if keyring.secure_boot else 'off'}, "
            f"sig_enforce {keyring.sig_enforce}, lockdown {keyring.lockdown}",
            f"its kernel must be one that the distribution signed; its console: {paths.failed_boot()}",
        )
    from kmlab.kernel.signing.guest_keyring import der

    if disks.digest(wanted.certificate) not in [hashlib.sha256(der(c)).hexdigest() for c in keyring.certificates]:
        raise LabError(
            f"guest '{name}': its kernel has not loaded the lab's certificate, {wanted.certificate}",
            'look for "Problem loading X.509 certificate" on its console: ' + str(paths.failed_boot()),
        )


def _start_agent(wanted: Plan, shell: Shell, deadline: Deadline) -> None:
    """Compile the agent in the guest, by its own compiler, and start it: it is there in every guest restored."""
    answer = shell.run(_AGENT.format(port=AGENT_PORT), deadline, data=catalog.agent_source().encode())
    if not answer.ok:
        said = printable(answer.error_text.strip(), 300)
        raise LabError(f"guest '{wanted.spec.name}' could not start the agent: {said}")


@contextlib.contextmanager
def _shell_while_booting(
    host: Host, wanted: Plan, base: Base, folder: Path, port: int, stage: Stage, deadline: Deadline
) -> Iterator[Shell]:
    """A shell as soon as the guest gives one, telling meanwhile what its console says."""
    with contextlib.ExitStack() as stack:
        shell = None
        patience = Deadline(firmware.FIRST_LINE_SECONDS * wanted.patience)
        while shell is None:
            command.check_cancelled()
            console = read_console(folder / "console.log")
            require_no_panic(wanted, console)
            require_trust(wanted, console)
            require_disk_space(wanted)
            if patience.passed:
                require_firmware_output(wanted, wanted.firmware, console)
            last = last_line(console)
            stage.progress(detail=last)
            try:
                attempt = host.shell(port, base.host_key, paths.identity_key(), deadline.within(2))
                shell = stack.enter_context(attempt)
            except GuestUnreachable as error:
                if deadline.passed:
                    raise GuestUnreachable(
                        f"guest '{wanted.spec.name}' did not answer on ssh within {deadline.seconds:.0f} s; "
                        f"last console line: '{last}'",
                        f"its whole console: {paths.failed_boot()}",
                    ) from error
        yield shell


def _host_cpu() -> str:
    """What a guest with the host's own CPU depends on."""
    wanted = ("model name", "flags", "microcode")
    found: dict[str, str] = {}
    for line in read_console(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            found.setdefault(name.strip(), value.strip())
    return paths.digest_of(found)
