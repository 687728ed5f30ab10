"""Move a cached image to another machine as one file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from kmlab.common import paths
from kmlab.common.errors import ConfigError, ImageError
from kmlab.common.events import printable
from kmlab.config import catalog
from kmlab.host.disk import disks
from kmlab.provision.images.image import built_image_folder
from kmlab.provision.images.published_image import check_signature
from kmlab.provision.plan.artifact import check_artifact
from kmlab.provision.plan.folder_archive import Kind, export_folder, import_folder
from kmlab.provision.plan.plan import find_image_source
from kmlab.provision.plan.source import PackageImageSource

_IMAGE = Kind("image", 64 << 30)
_KEY = re.compile(r"[a-z0-9][a-z0-9.-]*-(x86_64|aarch64)-[0-9a-f]{12,64}")


class MovedImage(NamedTuple):
    """An image that was exported or imported."""

    name: str
    arch: str
    path: Path
    note: str | None = None
    """Why this machine would not use it, although it is in the cache."""


def export_image(name: str, file: Path, lab_folder: Path | None, arch: str | None) -> MovedImage:
    """Write the cached image of that name to `file`. Raise ConfigError if the cache does not have it."""
    source = find_image_source(catalog.load_image(name, lab_folder), lab_folder, arch=arch)
    if isinstance(source, PackageImageSource):
        found = [built_image_folder(source, lab_folder)]
    else:
        found = sorted(paths.images().glob(f"{name}-{source.arch}-*"), key=lambda folder: folder.stat().st_mtime)
    folder = next((each for each in reversed(found) if (each / "image.json").exists()), None)
    if folder is None:
        raise ConfigError(f"the cache has no image {name} for {source.arch}", f"kmlab image pull {name}")
    check_artifact(folder / "image.json", folder / "disk.qcow2")
    export_folder(folder, file)
    return MovedImage(name, source.arch, file)


def import_image(file: Path, lab_folder: Path | None) -> MovedImage:
    """Add an exported image to the cache, after checking the digest of each file, and the publisher's signature."""

    def read(folder: Path, key: str) -> MovedImage | None:
        about = paths.read_json(folder / "image.json")
        if not isinstance(about, dict) or not _KEY.fullmatch(key):
            return None
        name, arch = str(about.get("name")), str(about.get("arch"))
        if not key.startswith(f"{name}-{arch}-"):
            return None
        disk = folder / "disk.qcow2"
        (folder / "checked.json").unlink(missing_ok=True)
        try:
            check_artifact(folder / "image.json", disk, every_byte=True)
        except ImageError:
            return None
        for each in folder.glob("*.qcow2"):
            disks.freeze(each)
        if problem := check_signature(folder, lab_folder):
            raise ConfigError(f"{printable(str(file))}: {problem}", "export an image that its publisher signed")
        return MovedImage(name, arch, paths.images() / key / "disk.qcow2", _why_unused(name, arch, key, lab_folder))

    return import_folder(file, paths.images(), _IMAGE, read)


def _why_unused(name: str, arch: str, key: str, lab_folder: Path | None) -> str | None:
    """Return why guests here would not use the image."""
    if name not in catalog.image_names(lab_folder):
        return "the catalogue here has no image of this name"
    source = find_image_source(catalog.load_image(name, lab_folder), lab_folder, arch=arch)
    if isinstance(source, PackageImageSource) and built_image_folder(source, lab_folder).name != key:
        return (
            f"guests here do not use it: it was built with another ssh key than {paths.identity_key()}.pub, or by "
            "another version of kmlab; copy the key and its .pub from that machine first"
        )
    return None
