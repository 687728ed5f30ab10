"""Plan how a guest is made, before anything is made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import Deadline
from kmlab.config import catalog
from kmlab.config.lab import GuestSpec, ImageNamed, ImagePath, ImageUrl, Lab
from kmlab.distribution import Distribution, distribution_of
from kmlab.host import Host
from kmlab.host.channel.ssh import ensure_identity
from kmlab.host.hypervisor import accel, firmware_files, hypervisor
from kmlab.host.hypervisor.accel import Acceleration
from kmlab.host.process import command
from kmlab.kernel.hang.watchdogs import Ladder, ladder
from kmlab.provision.plan.source import PackageImageSource, PublishedImageSource, Source, UserImageSource
from kmlab.virt.domain import SERIAL_PORTS, Domain, defects
from kmlab.virt.firmware import Firmware, choose


@dataclass(frozen=True, slots=True)
class Plan:
    """One guest of a lab, with everything that determines how it is made."""

    lab: Lab
    spec: GuestSpec
    image: catalog.Image
    """Its entry in the catalogue; almost empty for a user's own image."""
    source: Source
    """How to get the image."""
    recipe: catalog.Recipe
    arch: str
    acceleration: Acceleration
    qemu: str
    """The first line of QEMU's --version."""
    firmware: Firmware
    baking: Firmware
    """The firmware for baking the base: without Secure Boot, so that guests with and without it share the base."""
    public_key: str
    certificate: Path | None
    """The lab's certificate to enrol in the guest (MokList); None without Secure Boot."""

    @property
    def files(self) -> paths.GuestFiles:
        return lab_files(self.lab).guest(self.spec.name)

    @property
    def distribution(self) -> Distribution:
        return distribution_of(self.recipe.families)

    @property
    def embedded(self) -> bool:
        return self.lab.libvirt == hypervisor.EMBEDDED

    @property
    def domain_name(self) -> str:
        """Return the domain's name: unique on a shared libvirtd; an embedded driver has only one domain."""
        return "kmlab" if self.embedded else f"kmlab-{lab_files(self.lab).root.name}-{self.spec.name}"

    @property
    def watchdogs(self) -> Ladder:
        return ladder(self.acceleration.name, nested=self.acceleration.nested)

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
            devices=self.spec.named_devices if seed is None else {},
            qemu_args=self.spec.qemu_args if seed is None else (),
        )


def _certificate(lab: Lab) -> Path:
    from kmlab.provision.plan.lab_key import ensure_pair

    return ensure_pair(lab_files(lab), lab.name).certificate


def lab_files(lab: Lab) -> paths.LabFiles:
    return paths.LabFiles.of(lab.name, lab.path)


def make_plan(host: Host, lab: Lab, spec: GuestSpec) -> Plan:
    """Plan how this guest is made. Nothing is made yet, but the accelerator may be measured."""
    image, source = guest_image_source(lab, spec)
    arch = source.arch
    qemu = command.run([command.emulator(arch), "--version"], deadline=Deadline(10)).output.splitlines()[0]
    acceleration = host.accelerate(lab.accel, arch)
    baking = installed_firmware(arch)
    return Plan(
        lab=lab,
        spec=spec,
        image=image,
        source=source,
        recipe=recipe_for(spec.recipe or image.family, lab.folder, arch),
        arch=arch,
        acceleration=acceleration,
        qemu=qemu,
        firmware=_secure_firmware(acceleration, arch) if spec.secure_boot else baking,
        baking=baking,
        public_key=ensure_identity(paths.identity_key()),
        certificate=_certificate(lab) if spec.secure_boot else None,
    )


def check_guest(lab: Lab, spec: GuestSpec) -> None:
    """Raise ConfigError if the catalogue does not have this guest's image or recipe."""
    image, _ = guest_image_source(lab, spec)
    catalog.load_recipe(spec.recipe or image.family, lab.folder)


def guest_image_source(lab: Lab, spec: GuestSpec) -> tuple[catalog.Image, Source]:
    """Return a guest's image in the catalogue, and how to get it."""
    where = lab.where("guests", spec.name, "image")
    choice = ImageNamed(name=spec.image) if isinstance(spec.image, str) else spec.image
    if isinstance(choice, ImageNamed):
        image = catalog.load_image(choice.name, lab.folder, where)
        return image, find_image_source(image, lab.folder, mirror=mirror_of(lab), choice=choice, where=where)
    if choice.family is None and spec.recipe is None:
        raise lab.error(
            ("guests", spec.name, "image"),
            "an image of your own needs a family",
            "add a family, such as `family: ubuntu`",
        )
    own = _user_image_source(lab, choice)
    return catalog.Image(name=own.name, family=choice.family or "", release="", architectures={}), own


def find_image_source(
    image: catalog.Image,
    lab_folder: Path | None,
    *,
    mirror: str | None = None,
    choice: ImageNamed | None = None,
    arch: str | None = None,
    where: str = "",
) -> Source:
    """Return how to get an image of the catalogue for `arch`, or else for the architecture of `choice`, if any."""
    arch = arch_of(arch or (choice.arch if choice else None), tuple(image.architectures))
    entry = catalog.find_architecture(image, arch, where)
    if entry.packages is not None:
        if choice is not None and (choice.digest or choice.unverified):
            raise ConfigError(
                f"image '{image.name}' is built on this host and always verified: remove 'digest' and 'unverified'"
            )
        return PackageImageSource(
            name=image.name,
            arch=arch,
            family=image.family,
            packages=entry.packages,
            expired_indexes=image.expired_indexes,
            keyrings=tuple(catalog.load_key(key, lab_folder).keyring for key in image.archive_keys),
        )
    assert entry.download is not None and image.publisher is not None
    publisher, pin = image.publisher, entry.download.pin
    if choice is not None and choice.digest is not None:
        pin = catalog.Pin(serial=choice.serial, digest=choice.digest)
    return PublishedImageSource(
        name=image.name,
        arch=arch,
        publisher=publisher,
        file=entry.download.file,
        dated_file=entry.download.dated_file,
        key=catalog.load_key(publisher.key, lab_folder) if publisher.key else None,
        pin=pin,
        unverified=choice is not None and choice.unverified,
        mirror=mirror,
    )


def recipe_for(family: str, lab_folder: Path | None, arch: str) -> catalog.Recipe:
    """Return the recipe of a family for guests of this architecture."""
    return catalog.with_serial_port(catalog.load_recipe(family, lab_folder), SERIAL_PORTS[arch])


def mirror_of(lab: Lab | None) -> str | None:
    """Return the mirror: KMLAB_MIRROR, or else lab.yaml's `mirror`."""
    return os.environ.get("KMLAB_MIRROR") or (lab.mirror if lab else None)


def _user_image_source(lab: Lab, choice: ImageUrl | ImagePath) -> UserImageSource:
    arch = arch_of(choice.arch)
    if isinstance(choice, ImagePath):
        path = lab.locate(choice.path)
        return UserImageSource(name=f"own-{paths.digest_of(str(path))[:8]}", arch=arch, path=path, digest=choice.sha256)
    return UserImageSource(
        name=f"own-{paths.digest_of(choice.url)[:8]}", arch=arch, url=choice.url, digest=choice.sha256
    )


def installed_firmware(arch: str, *, secure_boot: bool = False, smm_available: bool = False) -> Firmware:
    """Choose a guest's firmware among those that are installed on this host."""
    chosen = choose(
        arch,
        secure_boot=secure_boot,
        smm_available=smm_available,
        size=firmware_files.flash_size,
        descriptors=firmware_files.descriptors(),
    )
    # One build may have several names. A checkpoint depends on the name.
    return dataclasses.replace(chosen, code=chosen.code.resolve(), variables=chosen.variables.resolve())


def _secure_firmware(acceleration: Acceleration, arch: str) -> Firmware:
    return installed_firmware(arch, secure_boot=True, smm_available=accel.has_smm(acceleration.name, arch))


def arch_of(arch: str | None, available: Sequence[str] = ()) -> str:
    """Return a guest's architecture: the given one, or else that of an image with only one architecture.

    Otherwise it is the host's, which needs no emulation. No other code uses the host's architecture for guests.
    """
    if arch is not None or len(available) == 1:
        return arch or available[0]
    host = os.uname().machine
    return host if host in available or not available else available[0]
