"""The pristine image: made once, verified, read-only, shared by all labs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kmlab import catalog, store
from kmlab.errors import ImageError
from kmlab.events import Deadline, Report, Stage, printable
from kmlab.host import Host, disks, locks
from kmlab.host.mmdebstrap import PackageImage
from kmlab.provision.making import LOCK_PATIENCE, check, record, sweep_key
from kmlab.provision.plan import Plan, arch_of

IMAGE_FORMAT = 1
"""Raised when images that an older kmlab built must not be used any more."""
_IMAGE_PATIENCE = 1800.0


def ensure_image(host: Host, wanted: Plan, report: Report) -> Path:
    """The pristine image of this guest, built when it is not there; read-only."""
    return _built_image(host, wanted.image, wanted.recipe, wanted.arch, report)


def build_image(host: Host, name: str, beside: Path | None, report: Report) -> Path:
    """An image of the catalogue by its name, for this host's architecture."""
    image = catalog.load_image(name, beside)
    return _built_image(host, image, catalog.load_recipe(image.family, beside), arch_of(image), report)


def _built_image(host: Host, image: catalog.Image, recipe: catalog.Recipe, arch: str, report: Report) -> Path:
    source = catalog.architecture(image, arch).packages
    if source is None:
        raise ImageError(f"image '{image.name}' is not built from packages", "kmlab image pull brings it")
    packages = catalog.built_packages(source, recipe)
    script = catalog.root_script()
    key = store.digest_of(IMAGE_FORMAT, image.name, arch, dataclasses.asdict(source), packages, script)
    final = store.images() / f"{image.name}-{arch}-{key}"
    with locks.held(store.work() / f"{final.name}.lock", image.name, report, Deadline(LOCK_PATIENCE)):
        if not (final / "image.json").exists():
            store.require_space(store.images(), 4 << 30, f"building image '{image.name}'")
            with Stage(report, image.name, "building the image from signed packages") as stage:
                sweep_key(final.name)
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
                    record(folder / "image.json", target, {"name": image.name, "arch": arch})
                stage.detail = f"{disks.size_on_disk(final) / 2**20:.0f} MiB"
        check(final / "image.json", final / "disk.qcow2")
    return final / "disk.qcow2"
