"""Package the user's own kernel: use the packages that its own Makefile made, or make packages of a build tree.

No program of the tree runs on the host, not even its `make modules_install`, because lab.yaml may be untrusted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import Stage, printable
from kmlab.config.lab import LocalKernel
from kmlab.host.disk import disks
from kmlab.kernel.build import build_tree
from kmlab.kernel.symbols import elf
from kmlab.provision.plan.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltKernel(LocalKernel):
    """A kernel in the cache that kmlab built; `local` is the folder of its packages."""

    key: str


def identity(plan: Plan, kernel: LocalKernel) -> object:
    """Return what identifies the user's kernel, for the key of a base."""
    if isinstance(kernel, BuiltKernel):
        return kernel.key
    place = plan.lab.locate(kernel.local)
    if not _is_tree(place):
        return {path.name: disks.digest(path) for path in _choose_packages(plan, place)[1]}
    tree = _tree(plan, place)
    stamps = [(str(m), s.st_size, s.st_mtime_ns) for m in tree.modules for s in [(place / m).stat()]]
    parts = (tree.image, place / build_tree.SYMVERS, place / build_tree.CONFIG)
    return [tree.release, *(disks.digest(path) for path in parts), paths.digest_of(stamps)]


def local_packages(
    plan: Plan, kernel: LocalKernel, folder: Path, stage: Stage, programs: Mapping[str, str] | None = None
) -> tuple[str, list[Path]]:
    """Return the kernel's release, and its packages in `folder`. Raise ConfigError if they are incomplete.

    The package of a build tree also installs `programs`, texts by their paths.
    """
    place = plan.lab.locate(kernel.local)
    if not _is_tree(place):
        release, packages = _choose_packages(plan, place)
        return release, [Path(shutil.copy(path, folder)) for path in packages]
    tree = _tree(plan, place)
    stage.progress(detail=f"packing kernel {tree.release}")
    size = sum((place / module).stat().st_size for module in tree.modules)
    paths.require_space(folder, 2 * size + (1 << 30), f"kernel {tree.release}")
    return tree.release, [_image_package(plan, tree, folder, programs or {}), _headers_package(plan, tree, folder)]


# Packages


def _choose_packages(plan: Plan, place: Path) -> tuple[str, list[Path]]:
    """Find the only kernel among the packages at `place`. Return its release, and its packages with dependencies."""
    distribution = plan.distribution
    suffix = distribution.package_suffix
    files = sorted(place.glob(f"*{suffix}")) if place.is_dir() else sorted(place.parent.glob(place.name))
    about = {path: distribution.read_package(path) for path in files if path.suffix == suffix and path.is_file()}
    images = {path: release for path, file in about.items() if (release := distribution.release_in(file.name))}
    listed = ", ".join(printable(path.name) for path in about) or "none"
    if len(images) != 1:
        kernel, headers = distribution.image_package("…"), distribution.headers_package("…")
        what = f"needs one {kernel}{suffix} and its {headers}{suffix}"
        many = "has several kernels" if images else what
        raise _error(plan, f"{printable(str(place))}: {many}; found: {listed}", _remedy(plan, place, bool(images)))
    ((image, release),) = images.items()
    headers = distribution.headers_package(release)
    if headers not in {file.name for file in about.values()}:
        message = f"{printable(str(place))}: no {headers} for its image; found: {listed}"
        raise _error(plan, message, _remedy(plan, place, False))
    pending, chosen = [about[image].name, headers], set()
    while pending:
        name = pending.pop()
        for path, file in about.items():
            if file.name == name and path not in chosen:
                chosen.add(path)
                pending += file.depends
    for path in chosen:
        arch = about[path].arch
        if arch not in (distribution.any_arch, distribution.architecture(plan.arch)):
            raise _error(plan, f"{printable(path.name)} is for {printable(arch)}, but the image is for {plan.arch}")
    return release, sorted(chosen)


def _remedy(plan: Plan, place: Path, several: bool) -> str:
    distribution = plan.distribution
    if several:
        return f"name one: local: '…/linux-*6.9.0-mine*{distribution.package_suffix}'"
    if place.is_dir() and (place / "Kbuild").exists():
        return "run `make` in this build tree first; if you build with O=, name that folder"
    target = distribution.package_target
    return f"`make {target}` writes both to the folder above the build tree; or name the tree itself"


# A build tree


@dataclass(frozen=True, slots=True)
class _Tree:
    place: Path
    release: str
    image: Path
    """The bootable kernel image."""
    source: Path
    """The folder of the sources: the tree itself, or another one with O=."""
    source_arch: str
    modules: Sequence[PurePosixPath]


def _is_tree(place: Path) -> bool:
    return (place / build_tree.RELEASE).is_file()


def _tree(plan: Plan, place: Path) -> _Tree:
    """Read a build tree. Raise ConfigError if a part is missing or does not fit the guest."""
    shown, arch = printable(str(place)), build_tree.SOURCE_ARCH[plan.arch]
    release = build_tree.find_release(_text(place / build_tree.RELEASE))
    if release is None:
        raise _error(plan, f"{shown}: {build_tree.RELEASE} has no kernel release", "run `make` in the tree")
    image = place / build_tree.BOOT_IMAGES[plan.arch]
    others = [a for a, path in build_tree.BOOT_IMAGES.items() if a != plan.arch and (place / path).exists()]
    if not image.is_file() and others:
        raise _error(plan, f"{shown}: a kernel for {others[0]}, but the image is for {plan.arch}")
    for path in (image, *(place / name for name in (build_tree.SYMVERS, build_tree.CONFIG, build_tree.ORDER))):
        if not path.is_file():
            raise _error(
                plan, f"{shown}: the build is incomplete: no {path.relative_to(place)}", "run `make` in the tree"
            )
    config = build_tree.parse_config(_text(place / build_tree.CONFIG))
    missing = build_tree.lacking(config, arch)
    if missing:
        raise _error(
            plan,
            f"{shown}: a guest cannot use this kernel, because it was built without {', '.join(missing)}",
            "in the tree: `make kvm_guest.config`, scripts/config --enable … for the rest, and `make` again",
        )
    if config.get("MODULE_SIG_FORCE") == "y":
        raise _error(
            plan,
            f"{shown}: the kernel requires signed modules (CONFIG_MODULE_SIG_FORCE), and a build tree's are not signed",
            f"run `make {plan.distribution.package_target}`, which signs them, "
            f"and set local: '../*{plan.distribution.package_suffix}'",
        )
    if plan.spec.secure_boot:
        raise _error(
            plan, "Secure Boot does not start the unsigned kernel of a build tree", "remove `secure_boot` or `kernel`"
        )
    modules = list(build_tree.modules_in(_text(place / build_tree.ORDER)))
    absent = next((module for module in modules if not (place / module).is_file()), None)
    if absent is not None:
        raise _error(
            plan, f"{shown}: the build is incomplete: no {printable(str(absent))}", "run `make modules` in the tree"
        )
    source = place / "source"
    return _Tree(place, release, image, source if source.is_dir() else place, arch, modules)


def _image_package(plan: Plan, tree: _Tree, folder: Path, programs: Mapping[str, str]) -> Path:
    root = folder / "kernel-image"
    boot, modules = root / "boot", root / "lib" / "modules" / tree.release
    paths.make_folder(boot)
    shutil.copy(tree.image, boot / f"vmlinuz-{tree.release}")
    for name, called in ((build_tree.CONFIG, "config"), (build_tree.SYSTEM_MAP, "System.map")):
        if (tree.place / name).is_file():
            shutil.copy(tree.place / name, boot / f"{called}-{tree.release}")
    for module in tree.modules:
        target = modules / "kernel" / module
        paths.make_folder(target.parent)
        target.write_bytes(elf.without_debug((tree.place / module).read_bytes()))
    paths.make_folder(modules)
    (modules / build_tree.ORDER).write_text("".join(f"kernel/{module}\n" for module in tree.modules))
    for name in build_tree.BUILTIN:
        if (tree.place / name).is_file():
            shutil.copy(tree.place / name, modules)
    for place, text in programs.items():
        program = root / place.lstrip("/")
        paths.make_folder(program.parent)
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
    after = plan.distribution.after_kernel(tree.release, initrd=bool(tree.modules))
    return _build_package(plan, root, folder, plan.distribution.image_package(tree.release), after)


def _headers_package(plan: Plan, tree: _Tree, folder: Path) -> Path:
    root = folder / "kernel-headers"
    home = PurePosixPath(plan.distribution.headers_folder(tree.release))
    for top in dict.fromkeys((tree.source, tree.place)):
        for path in _files(top, tree.source_arch):
            # With O= the build tree's Makefile only includes the source tree's.
            if top != tree.source and str(path) == "Makefile":
                continue
            target = root / home / path
            paths.make_folder(target.parent)
            target.unlink(missing_ok=True)
            shutil.copy(top / path, target, follow_symlinks=False)
    modules = paths.make_folder(root / "lib" / "modules" / tree.release)
    (modules / "build").symlink_to(f"/{home}")
    return _build_package(plan, root, folder, plan.distribution.headers_package(tree.release))


def _files(top: Path, source_arch: str) -> Iterator[PurePosixPath]:
    """Yield the files and links of a tree that module builds need, relative to the tree."""
    for place in build_tree.places(source_arch):
        if (top / place).is_file():
            yield PurePosixPath(place)
        for parent, _, names in os.walk(top / place):
            for name in names:
                path = PurePosixPath((Path(parent) / name).relative_to(top))
                if build_tree.is_for_modules(path, source_arch):
                    yield path


def _build_package(plan: Plan, root: Path, folder: Path, name: str, after: str = "") -> Path:
    target = folder / f"{name}{plan.distribution.package_suffix}"
    plan.distribution.build_package(root, target, name, plan.arch, after)
    paths.remove_tree(root)
    return target


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _error(plan: Plan, message: str, hint: str | None = None) -> ConfigError:
    return plan.lab.error(("guests", plan.spec.name, "kernel", "local"), message, hint)
