"""All that decides how a guest is made, looked up before anything is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kmlab import catalog, store
from kmlab.host import Host, accel, command, hypervisor
from kmlab.host.accel import Acceleration
from kmlab.host.ssh import ensure_identity
from kmlab.lab import GuestSpec, Lab
from kmlab.signing import ensure_pair
from kmlab.virt.domain import Domain
from kmlab.virt.firmware import Firmware, choose


@dataclass(frozen=True, slots=True)
class Plan:
    """One guest of a lab with everything that decides how it is made."""

    lab: Lab
    spec: GuestSpec
    image: catalog.Image
    recipe: catalog.Recipe
    arch: str
    acceleration: Acceleration
    firmware: Firmware
    baking: Firmware
    """The firmware of the base's boot: never Secure Boot, so that guests with and without it share the base."""
    public_key: str
    certificate: Path | None
    """What is enrolled in the guest (MokList): the lab's, where there is Secure Boot."""

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
            firmware=self.firmware if seed is None else self.baking,
            nvram=folder / "nvram.fd",
            disk=folder / "disk.qcow2",
            console=folder / "console.log",
            seed=seed,
        )


def lab_files(lab: Lab) -> store.LabFiles:
    return store.LabFiles.of(lab.name, lab.path)


def plan(host: Host, lab: Lab, spec: GuestSpec) -> Plan:
    """Look up all that decides how this guest is made; nothing is made yet, but the accelerator may be measured."""
    _refuse_what_is_not_there_yet(lab, spec)
    where = lab.where("guests", spec.name, "image")
    assert isinstance(spec.image, str)
    image = catalog.load_image(spec.image, lab.folder, where)
    arch = arch_of(image)
    command.find(command.emulator(arch))
    acceleration = host.accelerate(lab.accel, arch)
    baking = choose(arch, secure_boot=False, smm_available=False, exists=os.path.exists)
    return Plan(
        lab=lab,
        spec=spec,
        image=image,
        recipe=catalog.load_recipe(spec.recipe or image.family, lab.folder),
        arch=arch,
        acceleration=acceleration,
        firmware=_secure_firmware(acceleration, arch) if spec.secure_boot else baking,
        baking=baking,
        public_key=ensure_identity(store.identity_key()),
        certificate=ensure_pair(lab_files(lab), lab.name).certificate if spec.secure_boot else None,
    )


def _refuse_what_is_not_there_yet(lab: Lab, spec: GuestSpec) -> None:
    """ConfigError for a key that is understood but does nothing so far: better than to pass over it in silence."""
    guest = ("guests", spec.name)
    asked = {
        (*guest, "image"): not isinstance(spec.image, str),
        (*guest, "disk"): spec.disk is not None,
        ("matrix",): bool(lab.matrix),
        ("mirror",): lab.mirror is not None,
    }
    for keys, there in asked.items():
        if there:
            raise lab.error(keys, f"this value of '{keys[-1]}' is not supported yet", "leave it out")


def _secure_firmware(acceleration: Acceleration, arch: str) -> Firmware:
    smm = accel.has_smm(acceleration.name, arch)
    return choose(arch, secure_boot=True, smm_available=smm, exists=os.path.exists)


def arch_of(image: catalog.Image) -> str:
    """The host's own architecture where the image has it: anything else is emulated."""
    return os.uname().machine if os.uname().machine in image.architectures else next(iter(image.architectures))
