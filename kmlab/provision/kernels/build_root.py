"""Make the root file system of a kernel's build: the image's toolchain, and the packages that such a build needs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import LabError
from kmlab.common.events import Deadline, Stage
from kmlab.distribution import Distribution
from kmlab.host.process import command

_PATIENCE = 600.0


def make_build_root(
    distribution: Distribution, toolchain: Path, packages: Sequence[Path], root: Path, stage: Stage
) -> None:
    """Make `root` of the toolchain's files, which are not copied but linked, and of the content of these packages."""
    deadline = Deadline(_PATIENCE)
    paths.remove_tree(root)
    paths.make_folder(root.parent)
    stage.progress(detail="preparing compiler and tools")
    command.run(["cp", "--archive", "--link", toolchain, root], deadline=deadline)
    for package in packages:
        distribution.unpack_package(package, root, deadline)


def find_source(root: Path, name: str) -> Path:
    """Return the compressed sources that a package linux-source-… has put into `root`, moved out of it."""
    found = sorted((root / "usr/src").glob(f"{name}.tar.*")) + sorted((root / "usr/src" / name).glob("*.tar.*"))
    if not found:
        raise LabError(f"the package {name} contains no /usr/src/{name}.tar.xz", "report this to kmlab's authors")
    target = root.parent / found[0].name
    shutil.move(found[0], target)
    return target
