"""Which kernel a base gets: chosen on the host when the base is made, and put into its seed as verified packages."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.common.events import Deadline, EventSink, Stage, printable
from kmlab.config import catalog
from kmlab.config.lab import LocalKernel
from kmlab.host import Host
from kmlab.host.packages.apt import Archive
from kmlab.host.process import locks
from kmlab.kernel.build import kernel_releases
from kmlab.provision.images.image import catalogue_image
from kmlab.provision.images.local_kernel import identity, own_packages
from kmlab.provision.plan.artifact import LOCK_PATIENCE
from kmlab.provision.plan.plan import Plan, catalogued

OWN = ("default", "exact")
"""What asks for the kernel that the image comes with."""
_PATIENCE = 900.0
_SCRATCH = 1 << 30


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel for a base."""

    release: str
    """As `uname -r` says it; empty for the image's own."""
    debs: tuple[Path, ...] = ()
    """What the guest has to install for it; the files are the caller's."""


def asked_for(wanted: Plan) -> object:
    """What lab.yaml asks for, as part of a base's name: the words, or what makes the person's own build what it is."""
    asked = wanted.spec.kernel
    if not isinstance(asked, LocalKernel):
        return asked
    return identity(wanted, asked)


def ensure_kernel(host: Host, wanted: Plan, image: Path, folder: Path, stage: Stage) -> Kernel:
    """The kernel that a guest asks for, with its packages in `folder`."""
    asked = wanted.spec.kernel
    if asked in OWN:
        return Kernel("")
    if isinstance(asked, LocalKernel):
        release, debs = own_packages(wanted, asked, folder, stage)
        return Kernel(release, tuple(debs))
    deadline = Deadline(_PATIENCE)

    def tell(line: str) -> None:
        stage.progress(detail=printable(line, 100))

    with _archive(host, wanted.image, wanted.arch, image, stage.report, deadline, tell) as archive:
        further = wanted.image.kernel_suites
        installed = kernel_releases.installed_release(archive.status)
        found = kernel_releases.choose(str(asked), _packages(archive), installed, further)
        if isinstance(found, kernel_releases.Unmatched):
            message = f"{wanted.image.name}: {found.message}"
            raise wanted.lab.error(("guests", wanted.spec.name, "kernel"), message, found.hint)
        stage.progress(detail=f"fetching kernel {found.name}")
        names = [f"{name}={found.version}" for name in found.packages]
        debs = archive.fetch(names, found.suite if found.suite in further else None, deadline, tell)
        return Kernel(found.name, tuple(Path(shutil.move(deb, folder)) for deb in debs))


def available(
    host: Host, name: str, beside: Path | None, report: EventSink, arch: str | None = None
) -> tuple[list[kernel_releases.Release], str]:
    """Every kernel with headers that the image `name` of the catalogue can have, and the release of its own."""
    image = catalog.load_image(name, beside)
    arch = catalogued(image, beside, arch=arch).arch
    disk = catalogue_image(host, name, None, beside, report, arch=arch)
    with Stage(report, name, "asking its archive for kernels") as stage:

        def tell(line: str) -> None:
            stage.progress(detail=printable(line, 100))

        with _archive(host, image, arch, disk, report, Deadline(_PATIENCE), tell) as archive:
            return kernel_releases.releases(_packages(archive)), kernel_releases.installed_release(archive.status)


def _packages(archive: Archive) -> list[kernel_releases.Package]:
    return [package for suite, text in archive.indexes() for package in kernel_releases.parse_packages(text, suite)]


@contextlib.contextmanager
def _archive(
    host: Host,
    image: catalog.Image,
    arch: str,
    disk: Path,
    report: EventSink,
    deadline: Deadline,
    on_line: Callable[[str], None],
) -> Iterator[Archive]:
    """The image's archive with today's indexes; nobody else works in its folder meanwhile."""
    name = disk.parent.name
    with locks.held(paths.work() / f"archive-{name}.lock", image.name, report, Deadline(LOCK_PATIENCE)):
        paths.require_space(paths.archives(), _SCRATCH, f"the archive of '{image.name}'")
        archive = host.archive(paths.make_folder(paths.archives() / name, 0o700), arch)
        archive.update(disk, image.kernel_suites, deadline, on_line, expired=image.expired_indexes)
        yield archive
