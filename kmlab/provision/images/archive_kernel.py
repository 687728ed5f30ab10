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
from kmlab.config.lab import GuestSpec, Lab, LocalKernel
from kmlab.distribution import Distribution, PackageRelease, distribution_of
from kmlab.host import Host
from kmlab.host.packages.package_archive import PackageArchive
from kmlab.host.process import locks
from kmlab.kernel.build.kernel_releases import Release, Unmatched, split_release
from kmlab.provision.images.image import catalogue_image, is_cached
from kmlab.provision.images.local_kernel import identity, local_packages
from kmlab.provision.plan.artifact import LOCK_PATIENCE
from kmlab.provision.plan.plan import Plan, find_image_source, guest_image_source
from kmlab.provision.plan.source import PackageImageSource

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
    deadline, report_line = Deadline(_PATIENCE), _show_lines(stage)
    distribution = plan.distribution
    with opened_archive(
        host, distribution, plan.image, plan.arch, image, stage.report, deadline, report_line
    ) as archive:
        extra_suites = plan.image.kernel_suites
        kernel_release = _choose(plan.lab, plan.spec, plan.image, distribution, archive)
        stage.progress(detail=f"fetching kernel {kernel_release.name}")
        names = [f"{name}={kernel_release.version}" for name in kernel_release.packages]
        packages = archive.fetch(
            names, kernel_release.suite if kernel_release.suite in extra_suites else None, deadline, report_line
        )
        return Kernel(kernel_release.name, tuple(Path(shutil.move(package, folder)) for package in packages))


def available(
    host: Host, name: str, lab_folder: Path | None, report: EventSink, arch: str | None = None
) -> tuple[list[Release], str]:
    """Return all kernels with headers for the image `name` of the catalogue, and the release of its own kernel.

    An image that is built from packages need not exist: its archive answers.
    """
    image = catalog.load_image(name, lab_folder)
    source = find_image_source(image, lab_folder, arch=arch)
    distribution = distribution_of(catalog.load_recipe(image.family, lab_folder).families)
    with contextlib.ExitStack() as stack:
        archive = None
        if isinstance(source, PackageImageSource) and not is_cached(source):
            archive = stack.enter_context(_release_archive(host, distribution, image, source, report))
        if archive is None:
            disk = catalogue_image(host, name, None, lab_folder, report, arch=source.arch)
            on_line = _show_lines(stack.enter_context(Stage(report, name, "asking its archive for kernels")))
            opened = opened_archive(host, distribution, image, source.arch, disk, report, Deadline(_PATIENCE), on_line)
            archive = stack.enter_context(opened)
        found = distribution.kernels(archive)
        _remember(found)
        return found, distribution.installed_kernel(archive)


def check_kernels(host: Host, lab: Lab, specs: Sequence[GuestSpec], report: EventSink) -> None:
    """Raise ConfigError for a kernel that the archive does not have, before the image for it is built."""
    asked: dict[str, list[GuestSpec]] = {}
    for spec in specs:
        source = None if spec.kernel in IMAGE_KERNELS else guest_image_source(lab, spec)[1]
        looked_up = isinstance(source, PackageImageSource) and not isinstance(spec.kernel, LocalKernel)
        if source and looked_up and not is_cached(source):
            asked.setdefault(f"{source.name} {source.arch} {spec.recipe}", []).append(spec)
    for same in asked.values():
        image, source = guest_image_source(lab, same[0])
        assert isinstance(source, PackageImageSource)
        distribution = distribution_of(catalog.load_recipe(same[0].recipe or image.family, lab.folder).families)
        with _release_archive(host, distribution, image, source, report) as archive:
            for spec in same if archive else ():
                assert archive is not None
                _choose(lab, spec, image, distribution, archive)


def _choose(
    lab: Lab, spec: GuestSpec, image: catalog.Image, distribution: Distribution, archive: PackageArchive
) -> Release:
    chosen = distribution.choose_kernel(str(spec.kernel), archive, image.kernel_suites)
    if isinstance(chosen, Unmatched):
        raise lab.error(("guests", spec.name, "kernel"), f"{image.name}: {chosen.message}", chosen.hint)
    return chosen


def _show_lines(stage: Stage) -> Callable[[str], None]:
    return lambda line: stage.progress(detail=printable(line, 100))


@contextlib.contextmanager
def _release_archive(
    host: Host, distribution: Distribution, image: catalog.Image, source: PackageImageSource, report: EventSink
) -> Iterator[PackageArchive | None]:
    """Yield the archive that an image will be built from, with current indexes; None if only an image can tell it."""
    name = f"{source.name}-{source.arch}-packages"
    with (
        locks.held(paths.work() / f"archive-{name}.lock", image.name, report, Deadline(LOCK_PATIENCE)),
        Stage(report, image.name, "asking its archive for kernels") as stage,
    ):
        paths.require_space(paths.archives(), _SCRATCH, f"the archive of '{image.name}'")
        folder = paths.make_folder(paths.archives() / name, 0o700)
        archive = host.archive(distribution.open_archive, folder, source.arch)
        release = PackageRelease(
            suite=source.packages.suite,
            kernel=source.packages.kernel,
            extra_suites=image.kernel_suites,
            expired_indexes=image.expired_indexes,
        )
        known = distribution.query_release(archive, release, Deadline(_PATIENCE), _show_lines(stage))
        yield archive if known else None


def _remember(found: Sequence[Release]) -> None:
    """Keep the names of these kernels for completion in the shell: each version, and its series."""
    known = paths.read_json(paths.known_kernels())
    versions = [split_release(release.name)[0] for release in reversed(found)]
    series = [".".join(version.split(".")[:2]) for version in versions]
    names = dict.fromkeys([*series, *versions, *(known if isinstance(known, list) else ())])
    paths.write_json(paths.known_kernels(), list(names)[:_MOST_REMEMBERED])


@contextlib.contextmanager
def opened_archive(
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
