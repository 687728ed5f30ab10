"""Choose a base's kernel on the host, and fetch its verified packages for the seed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.common.events import Deadline, EventSink, Stage, printable
from kmlab.config import catalog
from kmlab.config.lab import LocalKernel
from kmlab.distribution import Distribution, distribution_of
from kmlab.host import Host
from kmlab.host.packages.package_archive import PackageArchive
from kmlab.host.process import locks
from kmlab.kernel.build.kernel_releases import Release, Unmatched, split_release
from kmlab.provision.images.image import catalogue_image
from kmlab.provision.images.local_kernel import identity, local_packages
from kmlab.provision.plan.artifact import LOCK_PATIENCE
from kmlab.provision.plan.plan import Plan, find_image_source

IMAGE_KERNELS = ("default", "exact")
"""Values of `kernel:` that mean the image's own kernel."""
_PATIENCE = 900.0
_SCRATCH = 1 << 30
_MOST_REMEMBERED = 200


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel for a base."""

    release: str
    """The release (`uname -r`); empty for the image's own kernel."""
    packages: tuple[Path, ...] = ()
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
        release, packages = local_packages(plan, choice, folder, stage)
        return Kernel(release, tuple(packages))
    deadline = Deadline(_PATIENCE)

    def report_line(line: str) -> None:
        stage.progress(detail=printable(line, 100))

    distribution = plan.distribution
    with _archive(host, distribution, plan.image, plan.arch, image, stage.report, deadline, report_line) as archive:
        extra_suites = plan.image.kernel_suites
        kernel_release = distribution.choose_kernel(str(choice), archive, extra_suites)
        if isinstance(kernel_release, Unmatched):
            message = f"{plan.image.name}: {kernel_release.message}"
            raise plan.lab.error(("guests", plan.spec.name, "kernel"), message, kernel_release.hint)
        stage.progress(detail=f"fetching kernel {kernel_release.name}")
        names = [f"{name}={kernel_release.version}" for name in kernel_release.packages]
        packages = archive.fetch(
            names, kernel_release.suite if kernel_release.suite in extra_suites else None, deadline, report_line
        )
        return Kernel(kernel_release.name, tuple(Path(shutil.move(package, folder)) for package in packages))


def available(
    host: Host, name: str, lab_folder: Path | None, report: EventSink, arch: str | None = None
) -> tuple[list[Release], str]:
    """Return all kernels with headers for the image `name` of the catalogue, and the release of its own kernel."""
    image = catalog.load_image(name, lab_folder)
    arch = find_image_source(image, lab_folder, arch=arch).arch
    disk = catalogue_image(host, name, None, lab_folder, report, arch=arch)
    with Stage(report, name, "asking its archive for kernels") as stage:

        def report_line(line: str) -> None:
            stage.progress(detail=printable(line, 100))

        distribution = distribution_of(catalog.load_recipe(image.family, lab_folder).families)
        with _archive(host, distribution, image, arch, disk, report, Deadline(_PATIENCE), report_line) as archive:
            found = distribution.kernels(archive)
            _remember(found)
            return found, distribution.installed_kernel(archive)


def _remember(found: Sequence[Release]) -> None:
    """Keep the names of these kernels for completion in the shell: each version, and its series."""
    known = paths.read_json(paths.known_kernels())
    versions = [split_release(release.name)[0] for release in reversed(found)]
    series = [".".join(version.split(".")[:2]) for version in versions]
    names = dict.fromkeys([*series, *versions, *(known if isinstance(known, list) else ())])
    paths.write_json(paths.known_kernels(), list(names)[:_MOST_REMEMBERED])


@contextlib.contextmanager
def _archive(
    host: Host,
    distribution: Distribution,
    image: catalog.Image,
    arch: str,
    disk: Path,
    report: EventSink,
    deadline: Deadline,
    on_line: Callable[[str], None],
) -> Iterator[PackageArchive]:
    """Yield the image's archive with current indexes, locked for this process."""
    name = disk.parent.name
    with locks.held(paths.work() / f"archive-{name}.lock", image.name, report, Deadline(LOCK_PATIENCE)):
        paths.require_space(paths.archives(), _SCRATCH, f"the archive of '{image.name}'")
        archive = host.archive(distribution.open_archive, paths.make_folder(paths.archives() / name, 0o700), arch)
        archive.update(disk, image.kernel_suites, deadline, on_line, expired=image.expired_indexes)
        yield archive
