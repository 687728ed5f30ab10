"""Which kernel a base gets: chosen on the host when the base is made, and put into its seed as verified packages."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kmlab import catalog, store
from kmlab.errors import LabError
from kmlab.events import Deadline, Report, Stage, printable
from kmlab.host import Host, command, disks, locks
from kmlab.host.apt import Archive
from kmlab.kernel import releases
from kmlab.lab import LocalKernel
from kmlab.provision.image import catalogue_image
from kmlab.provision.making import LOCK_PATIENCE
from kmlab.provision.plan import Plan, catalogued

OWN = ("default", "exact")
"""What asks for the kernel that the image comes with."""
_PATIENCE = 900.0
_SCRATCH = 1 << 30
_PACKAGE = re.compile(r"linux-(image|headers)-[A-Za-z0-9.+~-]{1,100}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel for a base."""

    release: str
    """As `uname -r` says it; empty for the image's own."""
    debs: tuple[Path, ...] = ()
    """What the guest has to install for it; the files are the caller's."""


def asked_for(wanted: Plan) -> object:
    """What lab.yaml asks for, as part of a base's name: the words, and the content of the person's own packages."""
    asked = wanted.spec.kernel
    if not isinstance(asked, LocalKernel):
        return asked
    return {path.name: disks.digest(path) for path in _local_debs(wanted, asked)}


def ensure_kernel(host: Host, wanted: Plan, image: Path, folder: Path, stage: Stage) -> Kernel:
    """The kernel that a guest asks for, with its packages in `folder`."""
    asked = wanted.spec.kernel
    if asked in OWN:
        return Kernel("")
    if isinstance(asked, LocalKernel):
        debs = [Path(shutil.copy(path, folder)) for path in _local_debs(wanted, asked)]
        return Kernel(_release_in(wanted, debs), tuple(debs))
    deadline = Deadline(_PATIENCE)

    def tell(line: str) -> None:
        stage.progress(detail=printable(line, 100))

    with _archive(host, wanted.image, wanted.arch, image, stage.report, deadline, tell) as archive:
        further = wanted.image.kernel_suites
        installed = releases.installed_release(archive.status)
        found = releases.choose(str(asked), _packages(archive), installed, further)
        if isinstance(found, releases.Unmatched):
            message = f"{wanted.image.name}: {found.message}"
            raise wanted.lab.error(("guests", wanted.spec.name, "kernel"), message, found.hint)
        stage.progress(detail=f"fetching kernel {found.name}")
        names = [f"{name}={found.version}" for name in found.packages]
        debs = archive.fetch(names, found.suite if found.suite in further else None, deadline, tell)
        return Kernel(found.name, tuple(Path(shutil.move(deb, folder)) for deb in debs))


def available(
    host: Host, name: str, beside: Path | None, report: Report, arch: str | None = None
) -> tuple[list[releases.Release], str]:
    """Every kernel with headers that the image `name` of the catalogue can have, and the release of its own."""
    image = catalog.load_image(name, beside)
    arch = catalogued(image, beside, arch=arch).arch
    disk = catalogue_image(host, name, None, beside, report, arch=arch)
    with Stage(report, name, "asking its archive for kernels") as stage:

        def tell(line: str) -> None:
            stage.progress(detail=printable(line, 100))

        with _archive(host, image, arch, disk, report, Deadline(_PATIENCE), tell) as archive:
            return releases.releases(_packages(archive)), releases.installed_release(archive.status)


def _packages(archive: Archive) -> list[releases.Package]:
    return [package for suite, text in archive.indexes() for package in releases.parse_packages(text, suite)]


@contextlib.contextmanager
def _archive(
    host: Host,
    image: catalog.Image,
    arch: str,
    disk: Path,
    report: Report,
    deadline: Deadline,
    on_line: Callable[[str], None],
) -> Iterator[Archive]:
    """The image's archive with today's indexes; nobody else works in its folder meanwhile."""
    name = disk.parent.name
    with locks.held(store.work() / f"archive-{name}.lock", image.name, report, Deadline(LOCK_PATIENCE)):
        store.require_space(store.archives(), _SCRATCH, f"the archive of '{image.name}'")
        archive = host.archive(store.make_folder(store.archives() / name, 0o700), arch)
        archive.update(disk, image.kernel_suites, deadline, on_line, expired=image.expired_indexes)
        yield archive


def _local_debs(wanted: Plan, asked: LocalKernel) -> list[Path]:
    """The person's own packages: image and headers of one kernel, as `make bindeb-pkg` leaves them."""
    lab, keys = wanted.lab, ("guests", wanted.spec.name, "kernel", "local")
    place = lab.locate(asked.local)
    found = sorted(place.parent.glob(place.name)) if not place.is_dir() else sorted(place.glob("*.deb"))
    kinds = ("linux-image-", "linux-headers-")
    debs = [p for p in found if p.name.startswith(kinds) and p.suffix == ".deb" and "-dbg_" not in p.name]
    if sorted(p.name.startswith(kinds[1]) for p in debs) == [False, True]:
        return debs
    if place.is_dir() and (place / "vmlinux").exists():
        raise lab.error(
            keys, "a build directory cannot be installed", "`make bindeb-pkg` in it, then local: '../*.deb'"
        )
    raise lab.error(
        keys,
        f"{printable(str(place))}: needed are one linux-image-….deb and the linux-headers-….deb that belongs to it; "
        f"found: {', '.join(printable(p.name) for p in debs) or 'none'}",
        "`make bindeb-pkg` in a kernel's build directory makes both, in the folder above it",
    )


def _release_in(wanted: Plan, debs: list[Path]) -> str:
    """The release that a kernel's packages are of."""
    names = [_package_name(deb) for deb in debs]
    found = {name.removeprefix("linux-image-").removeprefix("linux-headers-") for name in names}
    if len(found) != 1:
        raise wanted.lab.error(
            ("guests", wanted.spec.name, "kernel", "local"),
            f"these packages belong to different kernels: {', '.join(sorted(found))}",
        )
    return found.pop()


def _package_name(deb: Path) -> str:
    said = command.run(["dpkg-deb", "--field", deb, "Package"], deadline=Deadline(30)).output.strip()
    if not _PACKAGE.fullmatch(said):
        raise LabError(f"{deb.name}: not a Debian package with a name: {printable(said, 100)}")
    return said
