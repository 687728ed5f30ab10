"""The person's own kernel: packages as `make bindeb-pkg` leaves them, or a build tree, whose packages are made here.

Nothing of the tree runs on the host, not even its `make modules_install`: lab.yaml may be anybody's.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import Stage, printable
from kmlab.config.lab import LocalKernel
from kmlab.host.disk import disks
from kmlab.host.packages import debs
from kmlab.kernel.build import build_tree
from kmlab.kernel.symbols import elf
from kmlab.provision.plan.plan import Plan

_IMAGE = re.compile(r"linux-image-(unsigned-)?(?P<release>[0-9][A-Za-z0-9.+~_-]{0,99}?)(-unsigned)?", re.ASCII)
_NOT_MEANT = ("-dbg", "-dbgsym")
_AFTER = """\
depmod @RELEASE@
export DEB_MAINT_PARAMS="$*" INITRD=Yes
for hooks in /etc/kernel/postinst.d /usr/share/kernel/postinst.d; do
	[ ! -d "$hooks" ] || run-parts --report --exit-on-error --arg=@RELEASE@ --arg=/boot/vmlinuz-@RELEASE@ "$hooks"
done
"""
"""As a kernel's own packages do it, so that the distribution makes an initrd and a boot entry."""


def identity(wanted: Plan, asked: LocalKernel) -> object:
    """What makes the person's kernel what it is, as part of a base's name."""
    place = wanted.lab.locate(asked.local)
    if not _is_tree(place):
        return {path.name: disks.digest(path) for path in _chosen(wanted, place)[1]}
    tree = _tree(wanted, place)
    stamps = [(str(m), s.st_size, s.st_mtime_ns) for m in tree.modules for s in [(place / m).stat()]]
    parts = (tree.image, place / build_tree.SYMVERS, place / build_tree.CONFIG)
    return [tree.release, *(disks.digest(path) for path in parts), paths.digest_of(stamps)]


def own_packages(wanted: Plan, asked: LocalKernel, folder: Path, stage: Stage) -> tuple[str, list[Path]]:
    """The kernel's release, and its packages in `folder`."""
    place = wanted.lab.locate(asked.local)
    if not _is_tree(place):
        release, found = _chosen(wanted, place)
        return release, [Path(shutil.copy(path, folder)) for path in found]
    tree = _tree(wanted, place)
    stage.progress(detail=f"packing kernel {tree.release}")
    size = sum((place / module).stat().st_size for module in tree.modules)
    paths.require_space(folder, 2 * size + (1 << 30), f"kernel {tree.release}")
    return tree.release, [_image_package(wanted, tree, folder), _headers_package(wanted, tree, folder)]


# Packages


def _chosen(wanted: Plan, place: Path) -> tuple[str, list[Path]]:
    """The one kernel among the packages at a place: its release; image, headers, and what they need of the rest."""
    there = sorted(place.glob("*.deb")) if place.is_dir() else sorted(place.parent.glob(place.name))
    about = {path: debs.fields(path) for path in there if path.suffix == ".deb" and path.is_file()}
    names = {path: fields["Package"] for path, fields in about.items() if not fields["Package"].endswith(_NOT_MEANT)}
    images = {path: match["release"] for path, name in names.items() if (match := _IMAGE.fullmatch(name))}
    found = ", ".join(printable(path.name) for path in names) or "none"
    if len(images) != 1:
        what = "needed are one linux-image-….deb and the linux-headers-….deb that belongs to it"
        many = "several kernels lie there" if images else what
        raise _error(wanted, f"{printable(str(place))}: {many}; found: {found}", _remedy(place, bool(images)))
    ((image, release),) = images.items()
    if f"linux-headers-{release}" not in names.values():
        message = f"{printable(str(place))}: no linux-headers-{release} beside its image; found: {found}"
        raise _error(wanted, message, _remedy(place, False))
    needed, chosen = [names[image], f"linux-headers-{release}"], set()
    while needed:
        name = needed.pop()
        for path, called in names.items():
            if called == name and path not in chosen:
                chosen.add(path)
                needed += _dependencies(about[path])
    for path in chosen:
        arch = about[path].get("Architecture")
        if arch not in ("all", debs.NAMES[wanted.arch]):
            raise _error(wanted, f"{printable(path.name)} is for {printable(str(arch))}, and the image {wanted.arch}")
    return release, sorted(chosen)


def _dependencies(fields: dict[str, str]) -> list[str]:
    words = f"{fields.get('Depends', '')},{fields.get('Pre-Depends', '')}"
    return [re.split(r"[\s(:]", part.strip())[0] for part in re.split("[,|]", words) if part.strip()]


def _remedy(place: Path, several: bool) -> str:
    if several:
        return "name one: local: '…/linux-*6.9.0-mine*.deb'"
    if place.is_dir() and (place / "Kbuild").exists():
        return "a build tree that `make` has not built yet? With O= the folder that it names is meant"
    return "`make bindeb-pkg` leaves both in the folder above the build tree; or name the tree itself"


# A build tree


@dataclass(frozen=True, slots=True)
class _Tree:
    place: Path
    release: str
    image: Path
    """What boots."""
    source: Path
    """Where the Makefile and the headers lie that were not made: the tree itself, or with O= another."""
    source_arch: str
    modules: Sequence[PurePosixPath]


def _is_tree(place: Path) -> bool:
    return (place / build_tree.RELEASE).is_file()


def _tree(wanted: Plan, place: Path) -> _Tree:
    """A build tree that is whole; ConfigError with what is missing."""
    shown, arch = printable(str(place)), build_tree.SOURCE_ARCH[wanted.arch]
    release = build_tree.find_release(_text(place / build_tree.RELEASE))
    if release is None:
        raise _error(wanted, f"{shown}: {build_tree.RELEASE} names no release of a kernel", "`make` in the tree")
    image = place / build_tree.BOOT_IMAGES[wanted.arch]
    others = [a for a, path in build_tree.BOOT_IMAGES.items() if a != wanted.arch and (place / path).exists()]
    if not image.is_file() and others:
        raise _error(wanted, f"{shown}: a kernel for {others[0]}, and the image is for {wanted.arch}")
    for path in (image, *(place / name for name in (build_tree.SYMVERS, build_tree.CONFIG, build_tree.ORDER))):
        if not path.is_file():
            raise _error(wanted, f"{shown}: not built to its end: no {path.relative_to(place)}", "`make` in the tree")
    config = build_tree.parse_config(_text(place / build_tree.CONFIG))
    missing = build_tree.lacking(config, arch)
    if missing:
        raise _error(
            wanted,
            f"{shown}: a guest cannot do with this kernel, which was built without {', '.join(missing)}",
            "in the tree: `make kvm_guest.config`, scripts/config --enable … for the rest, and `make` again",
        )
    if config.get("MODULE_SIG_FORCE") == "y":
        raise _error(
            wanted,
            f"{shown}: it takes signed modules alone (CONFIG_MODULE_SIG_FORCE), and those of a tree are not signed",
            "`make bindeb-pkg` signs them: local: '../*.deb'",
        )
    if wanted.spec.secure_boot:
        raise _error(
            wanted, "a kernel out of a build tree is not signed, and Secure Boot starts none that is not", "drop one"
        )
    modules = list(build_tree.modules_in(_text(place / build_tree.ORDER)))
    absent = next((module for module in modules if not (place / module).is_file()), None)
    if absent is not None:
        raise _error(
            wanted, f"{shown}: not built to its end: no {printable(str(absent))}", "`make modules` in the tree"
        )
    source = place / "source"
    return _Tree(place, release, image, source if source.is_dir() else place, arch, modules)


def _image_package(wanted: Plan, tree: _Tree, folder: Path) -> Path:
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
    after = _AFTER.replace("@RELEASE@", tree.release)
    return _packed(wanted, root, folder, f"linux-image-{tree.release}", after)


def _headers_package(wanted: Plan, tree: _Tree, folder: Path) -> Path:
    root = folder / "kernel-headers"
    home = PurePosixPath("usr/src") / f"linux-headers-{tree.release}"
    for top in dict.fromkeys((tree.source, tree.place)):
        for path in _files(top, tree.source_arch):
            # With O= the build tree's Makefile does no more than name the other's.
            if top != tree.source and str(path) == "Makefile":
                continue
            target = root / home / path
            paths.make_folder(target.parent)
            target.unlink(missing_ok=True)
            shutil.copy(top / path, target, follow_symlinks=False)
    modules = paths.make_folder(root / "lib" / "modules" / tree.release)
    (modules / "build").symlink_to(f"/{home}")
    return _packed(wanted, root, folder, f"linux-headers-{tree.release}")


def _files(top: Path, source_arch: str) -> Iterator[PurePosixPath]:
    """The files and links of a tree that modules are built with, relative to it."""
    for place in build_tree.places(source_arch):
        if (top / place).is_file():
            yield PurePosixPath(place)
        for parent, _, names in os.walk(top / place):
            for name in names:
                path = PurePosixPath((Path(parent) / name).relative_to(top))
                if build_tree.is_for_modules(path, source_arch):
                    yield path


def _packed(wanted: Plan, root: Path, folder: Path, name: str, after: str = "") -> Path:
    about = {
        "Package": name,
        "Version": "1",
        "Architecture": debs.NAMES[wanted.arch],
        "Maintainer": "kmlab <kmlab@localhost>",
        "Description": "a kernel of one's own",
    }
    target = folder / f"{name}.deb"
    debs.build(root, target, about, after)
    paths.remove_tree(root)
    return target


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _error(wanted: Plan, message: str, hint: str | None = None) -> ConfigError:
    return wanted.lab.error(("guests", wanted.spec.name, "kernel", "local"), message, hint)
