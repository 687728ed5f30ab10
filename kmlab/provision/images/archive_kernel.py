"""Choose a base's kernel on the host, and fetch its verified packages for the seed."""

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
from kmlab.provision.images.local_kernel import identity, local_packages
from kmlab.provision.plan.artifact import LOCK_PATIENCE
from kmlab.provision.plan.plan import Plan, find_image_source

IMAGE_KERNELS = ("default", "exact")
"""Values of `kernel:` that mean the image's own kernel."""
_PATIENCE = 900.0
_SCRATCH = 1 << 30


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel for a base."""

    release: str
    """The release (`uname -r`); empty for the image's own kernel."""
    debs: tuple[Path, ...] = ()
    """The packages that the guest must install. The caller owns the files."""


def kernel_identity(plan: Plan) -> object:
    """Return what identifies the kernel of lab.yaml, for a base's key: its name, or the identity of a local build."""
    kernel = plan.spec.kernel
    if not isinstance(kernel, LocalKernel):
        return kernel
    return identity(plan, kernel)


def ensure_kernel(host: Host, plan: Plan, image: Path, folder: Path, stage: Stage) -> Kernel:
    """Return the guest's kernel, with its packages in `folder`. Raise ConfigError if the archive does not have it."""
    choice = plan.spec.kernel
    if choice in IMAGE_KERNELS:
        return Kernel("")
    if isinstance(choice, LocalKernel):
        release, debs = local_packages(plan, choice, folder, stage)
        return Kernel(release, tuple(debs))
    deadline = Deadline(_PATIENCE)

    def report_line(line: str) -> None:
        stage.progress(detail=printable(line, 100))

    with _archive(host, plan.image, plan.arch, image, stage.report, deadline, report_line) as archive:
        extra_suites = plan.image.kernel_suites
        installed = kernel_releases.installed_release(archive.status)
        kernel_release = kernel_releases.choose(str(choice), _packages(archive), installed, extra_suites)
        if isinstance(kernel_release, kernel_releases.Unmatched):
            message = f"{plan.image.name}: {kernel_release.message}"
            raise plan.lab.error(("guests", plan.spec.name, "kernel"), message, kernel_release.hint)
        stage.progress(detail=f"fetching kernel {kernel_release.name}")
        names = [f"{name}={kernel_release.version}" for name in kernel_release.packages]
        debs = archive.fetch(
            names, kernel_release.suite if kernel_release.suite in extra_suites else None, deadline, report_line
        )
        return Kernel(kernel_release.name, tuple(Path(shutil.move(deb, folder)) for deb in debs))


def available(
    host: Host, name: str, lab_folder: Path | None, report: EventSink, arch: str | None = None
) -> tuple[list[kernel_releases.Release], str]:
    """Return all kernels with headers for the image `name` of the catalogue, and the release of its own kernel."""
    image = catalog.load_image(name, lab_folder)
    arch = find_image_source(image, lab_folder, arch=arch).arch
    disk = catalogue_image(host, name, None, lab_folder, report, arch=arch)
    with Stage(report, name, "asking its archive for kernels") as stage:

        def report_line(line: str) -> None:
            stage.progress(detail=printable(line, 100))

        with _archive(host, image, arch, disk, report, Deadline(_PATIENCE), report_line) as archive:
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
    """Yield the image's archive with current indexes, locked for this process."""
    name = disk.parent.name
    with locks.held(paths.work() / f"archive-{name}.lock", image.name, report, Deadline(LOCK_PATIENCE)):
        paths.require_space(paths.archives(), _SCRATCH, f"the archive of '{image.name}'")
        archive = host.archive(paths.make_folder(paths.archives() / name, 0o700), arch)
        archive.update(disk, image.kernel_suites, deadline, on_line, expired=image.expired_indexes)
        yield archive
