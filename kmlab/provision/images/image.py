"""The pristine image: made or brought once, verified, read-only, shared by all labs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ImageError
from kmlab.common.events import Deadline, EventSink, Stage, printable
from kmlab.config import catalog
from kmlab.config.lab import GuestSpec, Lab
from kmlab.host import Host
from kmlab.host.channel.ssh import ensure_identity
from kmlab.host.disk import disks
from kmlab.host.packages.mmdebstrap import PackageImage
from kmlab.host.process import locks
from kmlab.provision.plan.artifact import LOCK_PATIENCE, check, record, sweep_key
from kmlab.provision.plan.plan import Plan, catalogued, mirror_of, source_of
from kmlab.provision.plan.source import Own, PackageImageSource, Source

IMAGE_FORMAT = 2
"""Raised when images that an older kmlab built must not be used any more."""
_IMAGE_PATIENCE = 1800.0


def ensure_image(host: Host, wanted: Plan, report: EventSink) -> Path:
    """The pristine image of this guest, brought when it is not there; read-only."""
    return _brought(host, wanted.source, wanted.lab.folder, report)


def guest_image(host: Host, lab: Lab, spec: GuestSpec, report: EventSink, *, refresh: bool = False) -> Path:
    """The image of a guest of a lab, without the rest of what makes a guest."""
    return _brought(host, source_of(lab, spec)[1], lab.folder, report, refresh=refresh)


def build_image(host: Host, name: str, beside: Path | None, report: EventSink, arch: str | None = None) -> Path:
    """An image of the catalogue that is built from packages."""
    source = catalogued(catalog.load_image(name, beside), beside, arch=arch)
    if not isinstance(source, PackageImageSource):
        raise ImageError(f"image '{name}' is not built here: its publisher made it", f"kmlab image pull {name}")
    return _built(host, source, beside, report)


def catalogue_image(
    host: Host,
    name: str,
    lab: Lab | None,
    beside: Path | None,
    report: EventSink,
    *,
    arch: str | None = None,
    refresh: bool = False,
) -> Path:
    """An image of the catalogue, by the word of the guest in lab.yaml that names it, if one does.

    `refresh` wants what its publisher has today, whatever is in the cache.
    """
    source = catalogued(catalog.load_image(name, beside), beside, mirror=mirror_of(lab), arch=arch)
    for spec in lab.guests.values() if lab else ():
        if lab is not None and getattr(spec.image, "name", spec.image) == name:
            _, asked = source_of(lab, spec)
            source = asked if arch in (None, asked.arch) else source
    return _brought(host, source, beside, report, refresh=refresh)


def _brought(host: Host, source: Source, beside: Path | None, report: EventSink, *, refresh: bool = False) -> Path:
    if isinstance(source, PackageImageSource):
        return _built(host, source, beside, report)
    from kmlab.provision.images.published_image import own_image, published_image

    if isinstance(source, Own):
        return own_image(source, report, refresh=refresh)
    return published_image(source, report, refresh=refresh)


def _built(host: Host, wanted: PackageImageSource, beside: Path | None, report: EventSink) -> Path:
    source, recipe = wanted.packages, catalog.load_recipe(wanted.family, beside)
    packages = catalog.built_packages(source, recipe)
    script = catalog.root_script(recipe, ensure_identity(paths.identity_key()))
    key = paths.digest_of(IMAGE_FORMAT, wanted.name, wanted.arch, dataclasses.asdict(source), packages, script)
    final = paths.images() / f"{wanted.name}-{wanted.arch}-{key}"
    with locks.held(paths.work() / f"{final.name}.lock", wanted.name, report, Deadline(LOCK_PATIENCE)):
        if not (final / "image.json").exists():
            paths.require_space(paths.images(), 4 << 30, f"building image '{wanted.name}'")
            with Stage(report, wanted.name, f"building the image from signed packages, for {wanted.arch}") as stage:
                sweep_key(final.name)
                with paths.published(final, paths.work()) as folder:
                    target = folder / "disk.qcow2"
                    about = PackageImage(
                        distribution=source.distribution,
                        suite=source.suite,
                        arch=wanted.arch,
                        packages=packages,
                        root_size=source.root_size,
                        expired_indexes=wanted.expired_indexes,
                        hook=script,
                    )
                    deadline = Deadline(_IMAGE_PATIENCE)
                    facts = host.build_image(
                        about, target, deadline, lambda line: stage.progress(detail=printable(line, 100))
                    )
                    record(folder / "image.json", target, {**facts, "name": wanted.name, "arch": wanted.arch})
                stage.detail = f"{disks.size_on_disk(final) / 2**20:.0f} MiB"
        check(final / "image.json", final / "disk.qcow2")
    return final / "disk.qcow2"
