"""All that decides how a guest is made, looked up before anything is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import Deadline
from kmlab.config import catalog
from kmlab.config.lab import GuestSpec, ImageNamed, ImagePath, ImageUrl, Lab
from kmlab.host import Host
from kmlab.host.channel.ssh import ensure_identity
from kmlab.host.hypervisor import accel, hypervisor
from kmlab.host.hypervisor.accel import Acceleration
from kmlab.host.process import command
from kmlab.provision.plan.source import Own, PackageImageSource, Published, Source
from kmlab.virt.domain import Domain, defects
from kmlab.virt.firmware import Firmware, choose


@dataclass(frozen=True, slots=True)
class Plan:
    """One guest of a lab with everything that decides how it is made."""

    lab: Lab
    spec: GuestSpec
    image: catalog.Image
    """Its entry in the catalogue; of a person's own there is little in it."""
    source: Source
    """What the image is made of or taken from."""
    recipe: catalog.Recipe
    arch: str
    acceleration: Acceleration
    qemu: str
    """The first line of what QEMU says to --version."""
    firmware: Firmware
    baking: Firmware
    """The firmware of the base's boot: never Secure Boot, so that guests with and without it share the base."""
    public_key: str
    certificate: Path | None
    """What is enrolled in the guest (MokList): the lab's, where there is Secure Boot."""

    @property
    def files(self) -> paths.GuestFiles:
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
            agent=folder / "agent",
            seed=seed,
            disabled_features=defects(self.arch, self.acceleration.name, self.qemu),
        )


def _certificate(lab: Lab) -> Path:
    from kmlab.provision.plan.lab_key import ensure_pair

    return ensure_pair(lab_files(lab), lab.name).certificate


def lab_files(lab: Lab) -> paths.LabFiles:
    return paths.LabFiles.of(lab.name, lab.path)


def plan(host: Host, lab: Lab, spec: GuestSpec) -> Plan:
    """Look up all that decides how this guest is made; nothing is made yet, but the accelerator may be measured."""
    image, source = source_of(lab, spec)
    arch = source.arch
    qemu = command.run([command.emulator(arch), "--version"], deadline=Deadline(10)).output.splitlines()[0]
    acceleration = host.accelerate(lab.accel, arch)
    baking = choose(arch, secure_boot=False, smm_available=False, exists=os.path.exists)
    return Plan(
        lab=lab,
        spec=spec,
        image=image,
        source=source,
        recipe=catalog.load_recipe(spec.recipe or image.family, lab.folder),
        arch=arch,
        acceleration=acceleration,
        qemu=qemu,
        firmware=_secure_firmware(acceleration, arch) if spec.secure_boot else baking,
        baking=baking,
        public_key=ensure_identity(paths.identity_key()),
        certificate=_certificate(lab) if spec.secure_boot else None,
    )


def source_of(lab: Lab, spec: GuestSpec) -> tuple[catalog.Image, Source]:
    """A guest's image in the catalogue, and what it comes from."""
    where = lab.where("guests", spec.name, "image")
    asked = ImageNamed(name=spec.image) if isinstance(spec.image, str) else spec.image
    if isinstance(asked, ImageNamed):
        image = catalog.load_image(asked.name, lab.folder, where)
        return image, catalogued(image, lab.folder, mirror=mirror_of(lab), asked=asked, where=where)
    if asked.family is None and spec.recipe is None:
        raise lab.error(
            ("guests", spec.name, "image"), "an image of your own needs a family", "add `family: ubuntu` to it"
        )
    own = _own(lab, asked)
    return catalog.Image(name=own.name, family=asked.family or "", release="", architectures={}), own


def catalogued(
    image: catalog.Image,
    beside: Path | None,
    *,
    mirror: str | None = None,
    asked: ImageNamed | None = None,
    arch: str | None = None,
    where: str = "",
) -> Source:
    """What an image of the catalogue comes from, for `arch` or else for the architecture that `asked` says, if any."""
    arch = arch_of(arch or (asked.arch if asked else None), tuple(image.architectures))
    entry = catalog.find_architecture(image, arch, where)
    if entry.packages is not None:
        if asked is not None and (asked.digest or asked.unverified):
            raise ConfigError(f"image '{image.name}' is built here: it has no digest, and is always verified")
        return PackageImageSource(
            name=image.name,
            arch=arch,
            family=image.family,
            packages=entry.packages,
            expired_indexes=image.expired_indexes,
        )
    assert entry.download is not None and image.publisher is not None
    publisher, pin = image.publisher, entry.download.pin
    if asked is not None and asked.digest is not None:
        pin = catalog.Pin(serial=asked.serial, digest=asked.digest)
    return Published(
        name=image.name,
        arch=arch,
        publisher=publisher,
        file=entry.download.file,
        dated_file=entry.download.dated_file,
        key=catalog.load_key(publisher.key, beside) if publisher.key else None,
        pin=pin,
        unverified=asked is not None and asked.unverified,
        mirror=mirror,
    )


def mirror_of(lab: Lab | None) -> str | None:
    """The site's own mirror: KMLAB_MIRROR, or else lab.yaml's."""
    return os.environ.get("KMLAB_MIRROR") or (lab.mirror if lab else None)


def _own(lab: Lab, asked: ImageUrl | ImagePath) -> Own:
    arch = arch_of(asked.arch)
    if isinstance(asked, ImagePath):
        path = lab.locate(asked.path)
        return Own(name=f"own-{paths.digest_of(str(path))[:8]}", arch=arch, path=path, digest=asked.sha256)
    return Own(name=f"own-{paths.digest_of(asked.url)[:8]}", arch=arch, url=asked.url, digest=asked.sha256)


def _secure_firmware(acceleration: Acceleration, arch: str) -> Firmware:
    smm = accel.has_smm(acceleration.name, arch)
    return choose(arch, secure_boot=True, smm_available=smm, exists=os.path.exists)


def arch_of(said: str | None, there: Sequence[str] = ()) -> str:
    """A guest's architecture: what the person says, or else the image, if it is for one alone.

    Only where neither says anything it is this host's, which needs no emulation: the one place that asks the host.
    """
    if said is not None or len(there) == 1:
        return said or there[0]
    host = os.uname().machine
    return host if host in there or not there else there[0]
