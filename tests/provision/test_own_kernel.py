"""Test the user's own kernel: packages of `make bindeb-pkg`, or a build tree that is packaged here."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pycdlib
import pytest

from kmlab.common import paths
from kmlab.common.errors import ConfigError, LabError
from kmlab.common.events import silent
from kmlab.config.lab import load_lab
from kmlab.kernel.build import build_tree
from kmlab.kernel.symbols import elf
from kmlab.provision import lifecycle
from kmlab.testing import World, module_image, package_file
from tests.places import TEST_DATA

MODULES = TEST_DATA / "ko"
SHT_NOBITS = 8
RELEASE = "6.9.0-mine+"
LAB = "name: k\nguests:\n  new: {image: IMAGE, memory: 256M, kernel: {local: PLACE}}\n"


@pytest.fixture
def world() -> Iterator[World]:
    with World(release="6.1.0-56-cloud-amd64") as made:
        yield made


def start(world: World, xdg: Path, place: str, image: str = "debian-12", **more: str) -> str:
    """The release that a guest with that kernel runs."""
    (xdg / "lab").mkdir(exist_ok=True)
    text = (
        LAB.replace("PLACE", place)
        .replace("IMAGE", image)
        .replace("}}", "}" + "".join(f", {k}: {v}" for k, v in more.items()) + "}")
    )
    (xdg / "lab" / "lab.yaml").write_text(text)
    lab = load_lab(xdg / "lab" / "lab.yaml")
    with lifecycle.guest_session(world.host, lab, lab.guest("new"), silent) as guest:
        return guest.record.release


def bases() -> set[str]:
    return {path.name for path in paths.bases().iterdir()}


# Packages


def test_the_user_s_packages_are_installed_unchanged(xdg: Path, world: World) -> None:
    mine = xdg / "debs"
    mine.mkdir()
    world.release = "6.9.0-mine"
    for kind in ("image", "headers"):
        package_file(mine, f"linux-{kind}-6.9.0-mine")
    package_file(mine, "linux-libc-dev")
    package_file(mine, "linux-image-6.9.0-mine-dbg")
    assert start(world, xdg, '"../debs/*.deb"') == "6.9.0-mine"
    assert b"1.deb" in world.seeds[-1] and b"2.deb" not in world.seeds[-1]
    assert "update" not in world.asked
    assert len(list(mine.glob("*.deb"))) == 4, "the person's own files stay"
    before = bases()
    image = mine / "linux-image-6.9.0-mine_1_amd64.deb"
    image.write_bytes(image.read_bytes() + b"\n")
    start(world, xdg, '"../debs/*.deb"')
    assert bases() > before, "what changed makes another base"


def test_only_dependencies_are_used_of_the_other_packages(xdg: Path, world: World) -> None:
    mine = xdg / "debs"
    mine.mkdir()
    world.release = "6.9.0-1-generic"
    package_file(mine, "linux-image-unsigned-6.9.0-1-generic", "linux-modules-6.9.0-1-generic, kmod")
    package_file(mine, "linux-modules-6.9.0-1-generic")
    package_file(mine, "linux-headers-6.9.0-1-generic", "linux-headers-6.9.0-1 (= 1), libc6 | libc")
    package_file(mine, "linux-headers-6.9.0-1", arch="all")
    package_file(mine, "linux-tools-6.9.0-1")
    assert start(world, xdg, "../debs") == "6.9.0-1-generic"
    assert b"3.deb" in world.seeds[-1] and b"4.deb" not in world.seeds[-1]


def test_a_distribution_s_unsigned_image_is_accepted(xdg: Path, world: World) -> None:
    mine = xdg / "debs"
    mine.mkdir()
    world.release = "6.1.0-53-cloud-amd64"
    package_file(mine, "linux-image-6.1.0-53-cloud-amd64-unsigned")
    package_file(mine, "linux-headers-6.1.0-53-cloud-amd64")
    assert start(world, xdg, "../debs") == "6.1.0-53-cloud-amd64"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "needs one linux-image-….deb .* found: none"),
        (("linux-image-6.9.0-mine",), "no linux-headers-6.9.0-mine .* found: linux-image-6.9.0-mine_1_amd64.deb"),
        (("linux-headers-6.9.0-mine",), "needs one .* found: linux-headers-6.9.0-mine_1_amd64.deb"),
        (("linux-image-6.9.0-mine", "linux-headers-6.9.1-mine"), "no linux-headers-6.9.0-mine for its image"),
        (("linux-image-6.9.0-a", "linux-image-6.9.0-b", "linux-headers-6.9.0-a"), "has several kernels"),
    ],
)
def test_packages_that_make_no_kernel_are_refused(
    xdg: Path, world: World, names: tuple[str, ...], message: str
) -> None:
    mine = xdg / "debs"
    mine.mkdir()
    for name in names:
        package_file(mine, name)
    with pytest.raises(ConfigError, match=rf"lab\.yaml:3: .*{message}"):
        start(world, xdg, "../debs")


def test_packages_for_another_architecture_are_refused(xdg: Path, world: World) -> None:
    mine = xdg / "debs"
    mine.mkdir()
    for kind in ("image", "headers"):
        package_file(mine, f"linux-{kind}-6.9.0-mine", arch="arm64")
    with pytest.raises(ConfigError, match="is for arm64, but the image is for x86_64"):
        start(world, xdg, "../debs", image="{name: debian-12, arch: x86_64}")


def test_a_file_that_is_no_package_is_reported(xdg: Path, world: World) -> None:
    (xdg / "debs").mkdir()
    (xdg / "debs" / "linux-image-1.deb").write_text("not a package")
    with pytest.raises(LabError, match=r"linux-image-1\.deb: not a Debian package"):
        start(world, xdg, "../debs")


# Build trees

CONFIG = (
    "".join(f"CONFIG_{name}={values[-1]}\n" for values, names in build_tree._NEEDED.items() for name in names)
    + "CONFIG_SERIAL_8250_CONSOLE=y\nCONFIG_OBJTOOL=y\n# CONFIG_MODULE_SIG is not set\n"
)
SOURCES = (
    *("Makefile", "Kbuild", "include/linux/module.h", "scripts/Makefile.build", "scripts/dtc/dtc.c"),
    *("scripts/kconfig/conf.c", "arch/x86/Makefile", "arch/x86/Makefile_32.cpu", "arch/x86/include/asm/page.h"),
    *("arch/x86/kernel/head.c", "arch/arm64/include/asm/page.h", "kernel/fork.c", "arch/x86/um/asm/module.lds"),
)
MADE = {
    build_tree.RELEASE: f"{RELEASE}\n",
    "arch/x86/boot/bzImage": "boots",
    "System.map": "ffffffff81000000 T _text\n",
    "Module.symvers": "0x1\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n",
    "modules.order": "drivers/a/first.o\nfs/second.o\n",
    "modules.builtin": "kernel/fs/ext4/ext4.ko\n",
    ".config": CONFIG,
    "include/config/auto.conf": CONFIG,
    "include/config/FOO": "",
    "include/generated/autoconf.h": "#define CONFIG_MODULES 1\n",
    "arch/x86/include/generated/asm/x.h": "",
    "scripts/mod/modpost": "a program",
    "scripts/mod/modpost.o": "",
    "scripts/mod/.modpost.cmd": "",
    "tools/objtool/objtool": "a program",
    "vmlinux": "large",
}


def write(top: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)


@pytest.fixture
def tree(xdg: Path) -> Path:
    """What `make` leaves, in small."""
    top = xdg / "linux"
    write(top, {**{name: f"// {name}\n" for name in SOURCES}, **MADE})
    for module in ("drivers/a/first.ko", "fs/second.ko"):
        (top / module).parent.mkdir(parents=True, exist_ok=True)
        (top / module).write_bytes(module_image(Path(module).stem))
    (top / "scripts/mod/modpost").chmod(0o755)
    return top


def unpacked(xdg: Path, world: World) -> Path:
    """The files of the packages in the seed of the last base, all in one root."""
    root, iso = xdg / "unpacked", pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(world.seeds[-1]))
    for number in (0, 1):
        deb = xdg / f"{number}.deb"
        iso.get_file_from_iso(str(deb), joliet_path=f"/{number}.deb")
        subprocess.run(["dpkg-deb", "--extract", deb, root], check=True)
        subprocess.run(["dpkg-deb", "--control", deb, xdg / f"control{number}"], check=True)
    return root


def names(folder: Path) -> set[str]:
    return {str(Path(parent, name).relative_to(folder)) for parent, _, files in os.walk(folder) for name in files}


def test_a_build_tree_becomes_an_image_with_its_modules_and_the_headers_to_build_more(
    xdg: Path, world: World, tree: Path
) -> None:
    world.release = RELEASE
    assert start(world, xdg, "../linux") == RELEASE
    root = unpacked(xdg, world)
    assert (root / f"boot/vmlinuz-{RELEASE}").read_text() == "boots"
    assert names(root / "boot") == {f"{what}-{RELEASE}" for what in ("vmlinuz", "config", "System.map")}
    modules = root / "lib/modules" / RELEASE
    assert (modules / "modules.order").read_text() == "kernel/drivers/a/first.ko\nkernel/fs/second.ko\n"
    assert (modules / "modules.builtin").exists()
    assert elf.read_object((modules / "kernel/fs/second.ko").read_bytes(), "x").symbols
    headers = root / "usr/src" / f"linux-headers-{RELEASE}"
    assert os.readlink(modules / "build") == f"/usr/src/linux-headers-{RELEASE}"
    assert names(headers) == {
        *("Makefile", ".config", "Module.symvers", "include/linux/module.h", "include/config/auto.conf"),
        *(build_tree.RELEASE, "include/generated/autoconf.h", "arch/x86/Makefile", "arch/x86/Makefile_32.cpu"),
        *("arch/x86/include/asm/page.h", "arch/x86/include/generated/asm/x.h", "arch/x86/um/asm/module.lds"),
        *("scripts/Makefile.build", "scripts/mod/modpost", "tools/objtool/objtool"),
    }
    assert os.access(headers / "scripts/mod/modpost", os.X_OK)
    assert f"depmod {RELEASE}\n" in (xdg / "control0/postinst").read_text()
    assert "update" not in world.asked
    assert not list(paths.work().glob("*/*")), "nothing is left half-made"


def test_with_o_the_headers_come_from_both_trees_and_the_makefile_from_the_source(xdg: Path, world: World) -> None:
    write(xdg / "linux", {name: f"// {name}\n" for name in SOURCES})
    write(xdg / "out", {**MADE, "Makefile": "include /elsewhere/Makefile\n", "modules.order": ""})
    (xdg / "out" / "source").symlink_to("../linux")
    world.release = RELEASE
    start(world, xdg, "../out")
    headers = unpacked(xdg, world) / "usr/src" / f"linux-headers-{RELEASE}"
    assert (headers / "Makefile").read_text() == "// Makefile\n"
    assert {"include/linux/module.h", "include/generated/autoconf.h"} < names(headers)


def test_only_a_rebuilt_tree_makes_another_base(xdg: Path, world: World, tree: Path) -> None:
    world.release = RELEASE
    start(world, xdg, "../linux")
    one = bases()
    start(world, xdg, "../linux")
    assert bases() == one
    os.utime(tree / "fs/second.ko", (1, 1))
    start(world, xdg, "../linux")
    two = bases()
    assert two > one
    (tree / "arch/x86/boot/bzImage").write_text("boots, but otherwise")
    start(world, xdg, "../linux")
    assert bases() > two


def test_no_program_of_a_tree_is_run(xdg: Path, world: World, tree: Path) -> None:
    for name in ("Makefile", "scripts/mod/modpost", "tools/objtool/objtool"):
        (tree / name).write_text(f"#!/bin/sh\nall modules_install: ; touch {xdg}/ran\ntouch {xdg}/ran\n")
        (tree / name).chmod(0o755)
    world.release = RELEASE
    start(world, xdg, "../linux")
    assert not (xdg / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("arch/x86/boot/bzImage", None, "the build is incomplete: no arch/x86/boot/bzImage"),
        ("Module.symvers", None, "the build is incomplete: no Module.symvers"),
        ("fs/second.ko", None, r"the build is incomplete: no fs/second\.ko"),
        (".config", CONFIG.replace("CONFIG_VIRTIO_BLK=m\n", ""), "was built without CONFIG_VIRTIO_BLK$"),
        (".config", CONFIG.replace("EFI_STUB=y", "EFI_STUB=m"), "was built without CONFIG_EFI_STUB$"),
        (".config", CONFIG + "CONFIG_MODULE_SIG_FORCE=y\n", "requires signed modules"),
        (build_tree.RELEASE, "../../etc\n", "has no kernel release"),
        (build_tree.RELEASE, None, "needs one linux-image"),
    ],
)
def test_an_unusable_tree_is_refused_with_what_is_missing(
    xdg: Path, world: World, tree: Path, name: str, content: str | None, message: str
) -> None:
    (tree / name).unlink() if content is None else (tree / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"lab\.yaml:3: .*/linux: .*{message}") as caught:
        start(world, xdg, "../linux")
    assert caught.value.hint
    assert "start" not in world.asked


def test_a_tree_for_another_machine_is_reported(xdg: Path, world: World, tree: Path) -> None:
    (tree / "arch/arm64/boot").mkdir(parents=True)
    (tree / "arch/x86/boot/bzImage").rename(tree / "arch/arm64/boot/Image")
    with pytest.raises(ConfigError, match="a kernel for aarch64, but the image is for x86_64"):
        start(world, xdg, "../linux", image="{name: debian-12, arch: x86_64}")


def test_secure_boot_with_an_unsigned_kernel_is_refused(xdg: Path, world: World, tree: Path) -> None:
    with pytest.raises(ConfigError, match="Secure Boot does not start the unsigned kernel"):
        start(world, xdg, "../linux", secure_boot="true")


def test_the_order_of_modules_is_read_in_each_kernel_s_form() -> None:
    modules = [str(path) for path in build_tree.modules_in("kernel/a/b.ko\na/c.ko\na/d.o\n\n/etc/x.o\n../up.o\n")]
    assert modules == ["a/b.ko", "a/c.ko", "a/d.ko"]


@pytest.mark.parametrize("name", sorted(path.name for path in MODULES.glob("*.ko")))
def test_a_module_without_its_debug_sections_is_the_same_otherwise(name: str, tmp_path: Path) -> None:
    whole = (MODULES / name).read_bytes()
    made = elf.without_debug(whole)
    before, after = elf.read_object(whole, "m"), elf.read_object(made, "m")
    assert after.symbols == before.symbols
    for old, new in zip(before.sections, after.sections, strict=True):
        left, right = (each._replace(offset=0, size=0, header_offset=0) for each in (old, new))
        assert left == right
        if old.type != SHT_NOBITS:
            assert made[new.offset : new.offset + new.size] == (
                b"" if ".debug_" in old.name else whole[old.offset : old.offset + old.size]
            )
    debug = sum(section.size for section in before.sections if ".debug_" in section.name)
    assert len(made) <= len(whole) - debug
    assert elf.without_debug(made) == made
    bare = tmp_path / "bare.o"
    bare.write_bytes(made)
    readelf = subprocess.run(["readelf", "--all", "--wide", bare], check=True, capture_output=True, text=True)
    assert "arning" not in readelf.stderr and "rror" not in readelf.stderr


@pytest.mark.parametrize("other", [b"", b"no ELF", b"\x7fELF", b"\x7fELF" + bytes(100)])
def test_a_file_that_is_no_module_stays_unchanged(other: bytes) -> None:
    assert elf.without_debug(other) == other
