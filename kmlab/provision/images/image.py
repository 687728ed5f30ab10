"""Build or download the pristine image once. It is verified, read-only, and shared by all labs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ImageError
from kmlab.common.events import Deadline, EventSink, Stage, printable
from kmlab.config import catalog
from kmlab.config.lab import GuestSpec, Lab
from kmlab.distribution import distribution_of
from kmlab.host import Host
from kmlab.host.channel.ssh import ensure_identity
from kmlab.host.disk import disks
from kmlab.host.packages.package_archive import PackageImage
from kmlab.host.process import locks
from kmlab.provision.plan.artifact import LOCK_PATIENCE, check_artifact, record_artifact, sweep_key
from kmlab.provision.plan.plan import Plan, find_image_source, guest_image_source, mirror_of, recipe_for
from kmlab.provision.plan.source import PackageImageSource, Source, UserImageSource

IMAGE_FORMAT = 2
"""Increased when images of older versions of kmlab must not be used any more."""
_IMAGE_PATIENCE = 1800.0


def ensure_image(host: Host, plan: Plan, report: EventSink) -> Path:
    """Return the pristine image of this guest. Build or download it if it does not exist."""
    return _ensure(host, plan.source, plan.lab.folder, report)


def guest_image(host: Host, lab: Lab, spec: GuestSpec, report: EventSink, *, refresh: bool = False) -> Path:
    """Return the image of a lab's guest, without a plan. `refresh` downloads it again."""
    return _ensure(host, guest_image_source(lab, spec)[1], lab.folder, report, refresh=refresh)


def build_image(host: Host, name: str, lab_folder: Path | None, report: EventSink, arch: str | None = None) -> Path:
    """Build an image of the catalogue from packages. Raise ImageError if its publisher made it."""
    source = find_image_source(catalog.load_image(name, lab_folder), lab_folder, arch=arch)
    if not isinstance(source, PackageImageSource):
        raise ImageError(f"image '{name}' is not built here: its publisher made it", f"kmlab image pull {name}")
    return _build(host, source, lab_folder, report)


def catalogue_image(
    host: Host,
    name: str,
    lab: Lab | None,
    lab_folder: Path | None,
    report: EventSink,
    *,
    arch: str | None = None,
    refresh: bool = False,
) -> Path:
    """Return an image of the catalogue, with the settings of the guest in lab.yaml that uses it, if any.

    `refresh` downloads the publisher's current image, even if one is in the cache.
    """
    source = find_image_source(catalog.load_image(name, lab_folder), lab_folder, mirror=mirror_of(lab), arch=arch)
    for spec in lab.guests.values() if lab else ():
        if lab is not None and getattr(spec.image, "name", spec.image) == name:
            _, guest_source = guest_image_source(lab, spec)
            source = guest_source if arch in (None, guest_source.arch) else source
    return _ensure(host, source, lab_folder, report, refresh=refresh)


def is_cached(source: Source) -> bool:
    """Return whether an image of this name and architecture exists already."""
    return any(paths.images().glob(f"{source.name}-{source.arch}-*/image.json"))


def _ensure(host: Host, source: Source, lab_folder: Path | None, report: EventSink, *, refresh: bool = False) -> Path:
    if isinstance(source, PackageImageSource):
        return _build(host, source, lab_folder, report)
    from kmlab.provision.images.published_image import own_image, published_image

    if isinstance(source, UserImageSource):
        return own_image(source, report, refresh=refresh)
    return published_image(source, report, refresh=refresh)


def built_image_folder(image_source: PackageImageSource, lab_folder: Path | None) -> Path:
    """Return the folder of an image that is built from packages: its name has the digest of all that goes in."""
    source, recipe = image_source.packages, recipe_for(image_source.family, lab_folder, image_source.arch)
    packages = catalog.built_packages(source, recipe, distribution_of(recipe.families).headers_of(source.kernel))
    script = catalog.root_script(recipe, ensure_identity(paths.identity_key()))
    key = paths.digest_of(
        IMAGE_FORMAT, image_source.name, image_source.arch, dataclasses.asdict(source), packages, script
    )
    return paths.images() / f"{image_source.name}-{image_source.arch}-{key}"


def _build(host: Host, image_source: PackageImageSource, lab_folder: Path | None, report: EventSink) -> Path:
    source, recipe = image_source.packages, recipe_for(image_source.family, lab_folder, image_source.arch)
    distribution = distribution_of(recipe.families)
    packages = catalog.built_packages(source, recipe, distribution.headers_of(source.kernel))
    script = catalog.root_script(recipe, ensure_identity(paths.identity_key()))
    final = built_image_folder(image_source, lab_folder)
    with locks.held(paths.work() / f"{final.name}.lock", image_source.name, report, Deadline(LOCK_PATIENCE)):
        if not (final / "image.json").exists():
            paths.require_space(paths.images(), 4 << 30, f"building image '{image_source.name}'")
            with Stage(
                report, image_source.name, f"building the image from signed packages, for {image_source.arch}"
            ) as stage:
                sweep_key(final.name)
                with paths.atomic_folder(final, paths.work()) as folder:
                    target = folder / "disk.qcow2"
                    about = PackageImage(
                        distribution=source.distribution,
                        suite=source.suite,
                        arch=image_source.arch,
                        packages=packages,
                        root_size=source.root_size,
                        expired_indexes=image_source.expired_indexes,
                        keyrings=image_source.keyrings,
                        hook=script,
                    )
                    deadline = Deadline(_IMAGE_PATIENCE)
                    facts = host.build_image(
                        distribution.build_image,
                        about,
                        target,
                        deadline,
                        lambda line: stage.progress(detail=printable(line, 100)),
                    )
                    record_artifact(
                        folder / "image.json", target, {**facts, "name": image_source.name, "arch": image_source.arch}
                    )
                stage.detail = f"{disks.size_on_disk(final) / 2**20:.0f} MiB"
        check_artifact(final / "image.json", final / "disk.qcow2")
    return final / "disk.qcow2"
