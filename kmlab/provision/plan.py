"""All that decides how a guest is made, looked up before anything is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kmlab import catalog, store
from kmlab.host import Host, command, hypervisor
from kmlab.host.accel import Acceleration
from kmlab.host.ssh import ensure_identity
from kmlab.lab import GuestSpec, Lab
from kmlab.virt import firmware
from kmlab.virt.domain import Domain


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


def lab_files(lab: Lab) -> store.LabFiles:
    return store.LabFiles.of(lab.name, lab.path)


def plan(host: Host, lab: Lab, spec: GuestSpec) -> Plan:
    """Look up all that decides how this guest is made; nothing is made yet, but the accelerator may be measured."""
    where = lab.where("guests", spec.name, "image")
    if not isinstance(spec.image, str):
        raise lab.error(("guests", spec.name, "image"), "an image of one's own is not supported yet")
    image = catalog.load_image(spec.image, lab.folder, where)
    arch = arch_of(image)
    command.find(command.emulator(arch))
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


def arch_of(image: catalog.Image) -> str:
    """The host's own architecture where the image has it: anything else is emulated."""
    return os.uname().machine if os.uname().machine in image.architectures else next(iter(image.architectures))
