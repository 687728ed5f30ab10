"""From an image to a running guest: image → base → checkpoint → guest, each made once and kept.

Everything half-made lies in `store.work()` until it is whole, so that ^C and kill -9 leave nothing that counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from kmlab import catalog, store
from kmlab.errors import GuestUnreachable, HypervisorError, ImageError, LabError
from kmlab.events import Deadline, Note, Report, Stage, printable
from kmlab.guest import Guest, GuestRecord, parse_facts, read_record, write_record
from kmlab.host import Host, command, disks, hypervisor, locks
from kmlab.host.accel import Acceleration
from kmlab.host.mmdebstrap import PackageImage
from kmlab.host.ssh import Shell, ensure_identity, known_hosts_line
from kmlab.lab import GuestSpec, Lab
from kmlab.virt import cloudinit, firmware
from kmlab.virt.domain import Domain, cpu_model, emulator, retarget, to_xml

IMAGE_FORMAT = 1
"""Raised when images built by an older kmlab must not be used any more."""
BASE_FORMAT = 1
CHECKPOINT_FORMAT = 1

_LOCK_PATIENCE = 3600.0
_IMAGE_PATIENCE = 1800.0
_BAKE_PATIENCE = 900.0
_BOOT_PATIENCE = 300.0
_RESTORE_PATIENCE = 60.0
_SSH = 22


@dataclass(frozen=True, slots=True)
class Plan:
    """One guest of a lab with everything that decides how it is made."""

    lab: Lab
    spec: GuestSpec
    image: catalog.Image
    recipe: catalog.Recipe
    arch: str
    acceleration: Acceleration
    firmware: firmware.Firmware
    public_key: str

    @property
    def files(self) -> store.GuestFiles:
        return lab_files(self.lab).guest(self.spec.name)

    @property
    def embedded(self) -> bool:
        return self.lab.libvirt == hypervisor.EMBEDDED

    @property
    def domain_name(self) -> str:
        """On a shared libvirtd names must differ; each embedded driver has only this one domain."""
        return "kmlab" if self.embedded else f"kmlab-{lab_files(self.lab).root.name}-{self.spec.name}"

    @property
    def patience(self) -> float:
        return 1.0 if self.acceleration.name == "kvm" else 3.0

    def domain(self, folder: Path, seed: Path | None = None) -> Domain:
        return Domain(
            name=self.domain_name,
            arch=self.arch,
            accel=self.acceleration.name,
            cpus=self.spec.cpus,
            memory=self.spec.memory,
            firmware=self.firmware,
            nvram=folder / "nvram.fd",
            disk=folder / "disk.qcow2",
            console=folder / "console.log",
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class Base:
    """An image plus a recipe, baked."""

    key: str
    release: str
    """Of its kernel."""
    host_key: str
    """The public half, as its sshd shows it."""

    @property
    def folder(self) -> Path:
        return store.bases() / self.key


def lab_files(lab: Lab) -> store.LabFiles:
    return store.LabFiles.of(lab.name, lab.path)


def plan(host: Host, lab: Lab, spec: GuestSpec) -> Plan:
    """Look up all that decides how this guest is made; nothing is made yet, but the accelerator may be measured."""
    where = lab.where("guests", spec.name, "image")
    if not isinstance(spec.image, str):
        raise lab.error(("guests", spec.name, "image"), "an image of one's own is not supported yet")
    image = catalog.load_image(spec.image, lab.folder, where)
    arch = _arch(image)
    command.find(emulator(arch))
    return Plan(
        lab=lab,
        spec=spec,
        image=image,
        recipe=catalog.load_recipe(spec.recipe or image.family, lab.folder),
        arch=arch,
        acceleration=host.accelerate(lab.accel, arch),
        firmware=firmware.choose(arch, secure_boot=spec.secure_boot, smm_available=False, exists=os.path.exists),
        public_key=ensure_identity(store.identity_key()),
    )


@contextlib.contextmanager
def entered(host: Host, lab: Lab, spec: GuestSpec, report: Report, *, fresh: bool = False) -> Iterator[Guest]:
    """The guest, up and clean, with a shell; nobody else works in it meanwhile.

    A guest that runs and is clean is taken as it is, unless `fresh`.
    """
    files = lab_files(lab).guest(spec.name)
    with locks.held(files.lock, spec.name, report, Deadline(_LOCK_PATIENCE)):
        yield from _enter(host, plan(host, lab, spec), report, fresh)


def _enter(host: Host, wanted: Plan, report: Report, fresh: bool) -> Iterator[Guest]:
    files, record = wanted.files, read_record(wanted.files)
    base = ensure_base(host, wanted, report)
    checkpoint = ensure_checkpoint(host, wanted, base, report)
    if record is not None and not fresh:
        reason = _unusable(wanted, record, checkpoint)
        if reason is None:
            with contextlib.ExitStack() as stack:
                try:
                    shell = stack.enter_context(_shell(host, record, Deadline(10 * wanted.patience)))
                except GuestUnreachable as error:
                    reason = error.message
                else:
                    yield Guest(files, record, shell)
                    return
        report(Note(wanted.spec.name, f"restored, because {printable(reason)}"))
    record = _restored(host, wanted, base, checkpoint, report)
    with _shell(host, record, Deadline(_RESTORE_PATIENCE * wanted.patience)) as shell:
        yield Guest(files, record, shell)


def _unusable(wanted: Plan, record: GuestRecord, checkpoint: str) -> str | None:
    """Why a running guest may not be taken as it is."""
    if record.checkpoint != checkpoint or record.uri != wanted.lab.libvirt:
        return "the lab's settings have changed"
    if record.pid is None or not hypervisor.alive(record.pid, wanted.files.root):
        return "it was not running any more"
    if record.state == "busy":
        return "its last run was cut off"
    if record.state == "dirty":
        return record.reason or "the last module left it dirty"
    return None


def _shell(host: Host, record: GuestRecord, deadline: Deadline) -> AbstractContextManager[Shell]:
    return host.shell(record.port, record.host_key, store.identity_key(), deadline)


# --- image ---------------------------------------------------------------------------------------------------------


def ensure_image(host: Host, wanted: Plan, report: Report) -> Path:
    """The pristine image of this guest, built when it is not there; read-only."""
    return _built_image(host, wanted.image, wanted.recipe, wanted.arch, report)


def build_image(host: Host, name: str, beside: Path | None, report: Report) -> Path:
    """An image of the catalogue by its name, for this host's architecture."""
    image = catalog.load_image(name, beside)
    return _built_image(host, image, catalog.load_recipe(image.family, beside), _arch(image), report)


def _arch(image: catalog.Image) -> str:
    """The host's own architecture where the image has it: anything else is emulated."""
    return os.uname().machine if os.uname().machine in image.architectures else next(iter(image.architectures))


def _built_image(host: Host, image: catalog.Image, recipe: catalog.Recipe, arch: str, report: Report) -> Path:
    source = catalog.architecture(image, arch).packages
    packages = catalog.built_packages(source, recipe)
    script = catalog.root_script()
    key = store.digest_of(IMAGE_FORMAT, image.name, arch, dataclasses.asdict(source), packages, script)
    final = store.images() / f"{image.name}-{arch}-{key}"
    with locks.held(store.work() / f"{final.name}.lock", image.name, report, Deadline(_LOCK_PATIENCE)):
        if not (final / "image.json").exists():
            store.require_space(store.images(), 4 << 30, f"building image '{image.name}'")
            with Stage(report, image.name, "building the image from signed packages") as stage:
                _sweep(final.name)
                with store.published(final, store.work()) as folder:
                    target = folder / "disk.qcow2"
                    about = PackageImage(
                        distribution=source.distribution,
                        suite=source.suite,
                        arch=arch,
                        packages=packages,
                        root_size=source.root_size,
                        hook=script,
                    )
                    deadline = Deadline(_IMAGE_PATIENCE)
                    host.build_image(about, target, deadline, lambda line: stage.progress(detail=printable(line, 100)))
                    _record(folder / "image.json", target, {"name": image.name, "arch": arch})
                stage.detail = f"{disks.size_on_disk(final) / 2**20:.0f} MiB"
        check(final / "image.json", final / "disk.qcow2")
    return final / "disk.qcow2"


# --- base ----------------------------------------------------------------------------------------------------------


def ensure_base(host: Host, wanted: Plan, report: Report) -> Base:
    """The base of this guest, baked when it is not there."""
    image = ensure_image(host, wanted, report)
    key = base_key(wanted, image)
    folder = store.bases() / key
    with locks.held(store.work() / f"base-{key}.lock", wanted.spec.name, report, Deadline(_LOCK_PATIENCE)):
        if not (folder / "base.json").exists():
            store.require_space(store.bases(), 2 << 30, f"baking the base of '{wanted.spec.name}'")
            with Stage(report, wanted.spec.name, "baking the base: a first boot that installs what builds need") as stage:
                _sweep(key)
                with store.published(folder, store.work()) as half:
                    said = {**_bake(host, wanted, image, half, stage), "image": image.parent.name}
                    _record(half / "base.json", half / "disk.qcow2", said)
                    for made in ("disk.qcow2", "nvram.fd"):
                        disks.freeze(half / made)
                stage.detail = f"kernel {said['release']}"
        known = check(folder / "base.json", folder / "disk.qcow2")
    return Base(key, str(known["release"]), str(known["host_key"]))


def base_key(wanted: Plan, image: Path) -> str:
    """The name of a base: everything that went in."""
    spec = wanted.spec
    return store.digest_of(
        BASE_FORMAT,
        image.parent.name,
        store.read_json(image.parent / "image.json"),
        dataclasses.asdict(wanted.recipe),
        spec.kernel,
        spec.cmdline,
        spec.packages,
        dict(spec.sysctls),
        wanted.public_key,
    )


def _bake(host: Host, wanted: Plan, image: Path, folder: Path, stage: Stage) -> dict[str, str]:
    """Boot the image once with a seed that makes it a base; what it said of itself."""
    deadline = Deadline(_BAKE_PATIENCE * wanted.patience)
    seed = folder / "seed.iso"
    values = {
        "PACKAGES": [*wanted.recipe.packages, *wanted.spec.packages],
        "HEADERS": [wanted.recipe.headers],
        "CMDLINE": [*wanted.recipe.cmdline.split(), *wanted.spec.cmdline.split()],
    }
    disks.make_seed(
        seed,
        cloudinit.seed_files(
            wanted.recipe.user_data,
            script=wanted.recipe.bake,
            values=values,
            authorized_key=wanted.public_key,
            instance=folder.name,
        ),
    )
    disks.make_overlay(folder / "disk.qcow2", image, deadline)
    disks.copy(wanted.firmware.variables, folder / "nvram.fd")
    domain = wanted.domain(folder, seed)
    with _booted(host, wanted, domain, folder, deadline) as hv:
        said = _watch_bake(wanted, domain, folder, hv, stage, deadline)
    for scratch in (seed, folder / "console.log"):
        scratch.unlink(missing_ok=True)
    return said


def _watch_bake(
    wanted: Plan, domain: Domain, folder: Path, hv: hypervisor.Hypervisor, stage: Stage, deadline: Deadline
) -> dict[str, str]:
    said: dict[str, str] = {}
    silent_until = Deadline(firmware.FIRST_LINE_SECONDS * wanted.patience)
    while True:
        console = _read(folder / "console.log")
        for line in console.splitlines():
            _, found, words = line.partition("kmlab-bake: ")
            if found:
                what, _, rest = words.strip().partition(" ")
                said[what] = rest
        if "error" in said:
            raise LabError(f"guest '{wanted.spec.name}' could not be baked: {printable(said['error'], 300)}")
        if not hv.runs(domain.name):
            break
        stage.progress(detail=_last_line(console))
        if not console and silent_until.passed:
            message, hint = firmware.why_silent(wanted.firmware)
            raise LabError(f"guest '{wanted.spec.name}': {message}", hint)
        if deadline.passed:
            raise LabError(
                f"guest '{wanted.spec.name}' was not baked within {deadline.seconds:.0f} s; "
                f"last console line: '{_last_line(console)}'"
            )
        time.sleep(0.3)
    if "done" not in said or "hostkey" not in said:
        raise LabError(
            f"guest '{wanted.spec.name}' stopped before its base was baked; last console line: '{_last_line(console)}'"
        )
    return {"release": said["done"], "host_key": " ".join(said["hostkey"].split()[:2])}


# --- checkpoint ----------------------------------------------------------------------------------------------------


def ensure_checkpoint(host: Host, wanted: Plan, base: Base, report: Report) -> str:
    """The key of the checkpoint of this guest, made when it is not there."""
    key = checkpoint_key(wanted, base)
    folder = store.checkpoints() / key
    with locks.held(store.work() / f"checkpoint-{key}.lock", wanted.spec.name, report, Deadline(_LOCK_PATIENCE)):
        if not (folder / "checkpoint.json").exists():
            needed = wanted.spec.memory + (1 << 30)
            store.require_space(store.checkpoints(), needed, f"the checkpoint of '{wanted.spec.name}'")
            with Stage(report, wanted.spec.name, "making the checkpoint: booting the base once, saving its memory") as stage:
                _sweep(key)
                with store.published(folder, store.work()) as half:
                    facts = _save_booted(host, wanted, base, half, stage)
                    _record(half / "checkpoint.json", half / "memory", facts)
                    for made in ("disk.qcow2", "nvram.fd", "memory"):
                        disks.freeze(half / made)
                stage.detail = f"{disks.size_on_disk(folder) / 2**20:.0f} MiB"
        check(folder / "checkpoint.json", folder / "memory")
    return key


def checkpoint_key(wanted: Plan, base: Base) -> str:
    """The name of a checkpoint: its base, and whatever would keep it from being restored."""
    qemu = command.find(emulator(wanted.arch))
    place = Path("/")
    return store.digest_of(
        CHECKPOINT_FORMAT,
        base.key,
        to_xml(wanted.domain(place), qemu),
        _version(qemu),
        _host_cpu() if wanted.acceleration.name == "kvm" else cpu_model("tcg"),
        wanted.recipe.idle,
    )


def _save_booted(host: Host, wanted: Plan, base: Base, folder: Path, stage: Stage) -> dict[str, str]:
    deadline = Deadline(_BOOT_PATIENCE * wanted.patience)
    disks.make_overlay(folder / "disk.qcow2", base.folder / "disk.qcow2", deadline)
    disks.copy(base.folder / "nvram.fd", folder / "nvram.fd")
    domain = wanted.domain(folder)
    with _booted(host, wanted, domain, folder, deadline) as hv:
        port = hv.forward(domain.name, _SSH)
        with _shell_while_booting(host, wanted, base, folder, port, stage, deadline) as shell:
            stage.progress(detail="waiting for the guest to be idle")
            answer = shell.run("sh", deadline, data=wanted.recipe.idle.encode())
            facts = parse_facts(answer.text)
            if not answer.ok or facts.get("release") != base.release:
                raise LabError(
                    f"guest '{wanted.spec.name}' booted, but its kernel is {facts.get('release')} and not {base.release}",
                    "kmlab image prune, then kmlab up",
                )
        stage.progress(detail="saving its memory")
        hv.save(domain.name, folder / "memory")
    (folder / "console.log").rename(folder / "boot.log")
    return facts


@contextlib.contextmanager
def _shell_while_booting(
    host: Host, wanted: Plan, base: Base, folder: Path, port: int, stage: Stage, deadline: Deadline
) -> Iterator[Shell]:
    """A shell as soon as the guest gives one, telling meanwhile what its console says."""
    with contextlib.ExitStack() as stack:
        shell = None
        while shell is None:
            last = _last_line(_read(folder / "console.log"))
            stage.progress(detail=last)
            try:
                attempt = host.shell(port, base.host_key, store.identity_key(), deadline.within(2))
                shell = stack.enter_context(attempt)
            except GuestUnreachable as error:
                if deadline.passed:
                    raise GuestUnreachable(
                        f"guest '{wanted.spec.name}' did not answer on ssh within {deadline.seconds:.0f} s; "
                        f"last console line: '{last}'"
                    ) from error
        yield shell


# --- guest ---------------------------------------------------------------------------------------------------------


def _restored(host: Host, wanted: Plan, base: Base, checkpoint: str, report: Report) -> GuestRecord:
    """The guest restored from its checkpoint; one that does not restore is made anew, once."""
    try:
        return _restore(host, wanted, base, checkpoint, report)
    except (HypervisorError, GuestUnreachable) as error:
        report(Note(wanted.spec.name, f"the checkpoint does not restore, so it is made anew ({error.message})"))
        stop(host, wanted.lab, wanted.spec.name)
        store.remove_tree(store.checkpoints() / checkpoint)
        ensure_checkpoint(host, wanted, base, report)
        return _restore(host, wanted, base, checkpoint, report)


def _restore(host: Host, wanted: Plan, base: Base, checkpoint: str, report: Report) -> GuestRecord:
    files, source = wanted.files, store.checkpoints() / checkpoint
    deadline = Deadline(_RESTORE_PATIENCE * wanted.patience)
    with Stage(report, wanted.spec.name, "restoring the guest") as stage:
        stop(host, wanted.lab, wanted.spec.name)
        store.require_space(store.state_home(), 512 << 20, f"guest '{wanted.spec.name}'")
        for stale in (files.disk, files.console, files.record):
            stale.unlink(missing_ok=True)
        store.make_folder(files.root, 0o700)
        disks.make_overlay(files.disk, source / "disk.qcow2", deadline)
        disks.copy(source / "nvram.fd", files.nvram)
        with host.hypervisor(wanted.lab.libvirt, files.libvirt, deadline) as hv:

            def ours(saved: str) -> str:
                return retarget(saved, nvram=files.nvram, disk=files.disk, console=files.console)

            hv.restore(source / "memory", ours)
            port = hv.forward(wanted.domain_name, _SSH)
            tty = hv.console_tty(wanted.domain_name)
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
            tty=tty,
            pid=pids[0] if pids else None,
            started=time.time(),
        )
        store.write_text(files.known_hosts, known_hosts_line(port, base.host_key), 0o600)
        write_record(files, record)
        with _shell(host, record, deadline) as shell:
            guest = Guest(files, record, shell)
            if not guest.wake(deadline).ok:
                raise GuestUnreachable(f"guest '{wanted.spec.name}' did not wake up")
        stage.detail = f"kernel {base.release}, {wanted.acceleration.name}"
    return record


def stop(host: Host, lab: Lab, name: str) -> bool:
    """End the guest at once, whatever state it is in; whether there was one."""
    files = lab_files(lab).guest(name)
    record = read_record(files)
    found = bool(hypervisor.processes(files.root))
    if record is not None and (found or record.uri != hypervisor.EMBEDDED):
        with contextlib.suppress(LabError), host.hypervisor(record.uri, files.libvirt, Deadline(20)) as hv:
            hv.stop(record.domain)
    hypervisor.kill(files.root)
    if record is not None:
        files.record.unlink(missing_ok=True)
    return found


def take_down(host: Host, lab: Lab, name: str, report: Report) -> bool:
    """Stop the guest when nobody works in it; whether it was running."""
    with locks.held(lab_files(lab).guest(name).lock, name, report, Deadline(_LOCK_PATIENCE)):
        return stop(host, lab, name)


def destroy_lab(host: Host, lab: Lab, names: Sequence[str], *, all_state: bool, report: Report) -> list[str]:
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
        with locks.held(guest.lock, name, report, Deadline(_LOCK_PATIENCE)):
            stop(host, lab, name)
            store.remove_tree(guest.root)
        guest.lock.unlink(missing_ok=True)
        gone.append(name)
    if not names:
        store.remove_tree(files.root)
        sweep()
    if all_state:
        for folder in (files.keys, store.images(), store.bases(), store.checkpoints(), store.work(), store.capabilities()):
            store.remove_tree(folder)
        gone.append("keys, images, bases and checkpoints")
    return gone


def sweep() -> None:
    """Clear away what a killed kmlab left half-made in the cache, with any QEMU that still runs there."""
    if store.work().is_dir():
        for lock in store.work().glob("*.lock"):
            if locks.is_free(lock):
                _sweep(lock.stem.removeprefix("base-").removeprefix("checkpoint-"))


def _sweep(key: str) -> None:
    """Remove half-made things of this key; its lock must be free or ours."""
    for folder in store.work().glob(f"{key[:12]}.*"):
        if folder.is_dir():
            hypervisor.kill(folder)
            store.remove_tree(folder)


# --- shared --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _booted(
    host: Host, wanted: Plan, domain: Domain, folder: Path, deadline: Deadline
) -> Iterator[hypervisor.Hypervisor]:
    """A domain that runs while the block does, and not after."""
    with host.hypervisor(wanted.lab.libvirt, folder / "v", deadline) as hv:
        hv.start(to_xml(domain, command.find(emulator(wanted.arch))))
        try:
            yield hv
        finally:
            with contextlib.suppress(LabError):
                hv.stop(domain.name)
            hypervisor.kill(folder)
    store.remove_tree(folder / "v")


def _record(path: Path, file: Path, facts: dict[str, str]) -> None:
    """Say what was made, and how its file looks now that it is whole."""
    disks.freeze(file)
    status = file.stat()
    about = {**facts, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": disks.digest(file)}
    store.write_json(path, about)


def check(path: Path, file: Path) -> dict[str, object]:
    """The record beside a cached file; ImageError if the file is not what was recorded."""
    known = store.read_json(path)
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


def _version(qemu: str) -> str:
    return command.run([qemu, "--version"], deadline=Deadline(10)).output.splitlines()[0]


def _host_cpu() -> str:
    """What a guest with the host's own CPU depends on."""
    wanted = ("model name", "flags", "microcode")
    found = {}
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            found.setdefault(name.strip(), value.strip())
    return store.digest_of(found)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _last_line(console: str) -> str:
    lines = console[-4000:].strip().splitlines()
    return printable(lines[-1].strip(), 100) if lines else ""
