"""Test bake.sh in a container whose apt, dpkg and boot loader are stand-ins that record their calls."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from kmlab.config import catalog
from kmlab.virt.cloudinit import seed_files

RUNNING = "6.8.0-31-generic"
NEWER = "6.8.0-90-generic"
STAND_INS = {
    "uname": "cat /running",
    "apt-get": """
        echo "apt-get $*" >> /calls
        echo "needrestart ${NEEDRESTART_SUSPEND-runs}" >> /calls
        case " $* " in *" no-such-package "*) echo "E: Unable to locate package no-such-package"; exit 100 ;; esac
        for word in "$@"; do case $word in
            linux-headers-[0-9]*) mkdir -p "/lib/modules/${word#linux-headers-}/build"
                : > "/lib/modules/${word#linux-headers-}/build/Makefile" ;;
            linux-image-*) if [ -e /newer ]; then mkdir -p "/lib/modules/$(cat /newer)/build"
                : > "/lib/modules/$(cat /newer)/build/Makefile"; : > "/boot/vmlinuz-$(cat /newer)"; fi ;;
        esac; done""",
    "apt-cache": 'for word in "$@"; do :; done; grep --quiet --line-regexp --fixed-strings -e "$word" /offered',
    "dpkg-query": """
        for word in "$@"; do :; done
        case $word in linux-image-\\*) cat /images ;; *) ! grep -qxF -e "$word" /there || echo installed ;; esac""",
    "df": """case "$*" in *avail*) printf 'Avail\\n%s\\n' "$(cat /free)" ;; *) exec /usr/bin/df "$@" ;; esac""",
    "findmnt": "echo /dev/vda1",
    "lsblk": "echo vda",
    "growpart": 'echo "growpart $* with TMPDIR=$TMPDIR" >> /calls; [ ! -e /grown ] || cp /grown /free',
    "resize2fs": 'echo "resize2fs $*" >> /calls; [ -e /grown ] || echo "resize2fs: nothing to do"',
    "grub-probe": "echo 0000-1111",
    "update-grub": """
        mkdir -p /boot/grub
        . /etc/default/grub.d/99-kmlab.cfg
        echo "menuentry '$GRUB_DEFAULT'" > /boot/grub/grub.cfg""",
    "systemctl": 'echo "systemctl $*" >> /calls',
    "usermod": 'echo "usermod $*" >> /calls',
    "poweroff": 'echo "poweroff" >> /calls; kill -TERM $PPID; sleep 60',
    "sync": "true",
}
PLACES = (
    *("bin-first", "etc/systemd/system", "etc/ssh", "etc/cloud", "boot", "run/kmlab", "lib/modules", "home/ubuntu"),
    *("proc/sys/kernel", "dev", "sys/class/block/vda1"),
)


@dataclass
class Baked:
    """What became of it."""

    messages: list[str]
    calls: list[str]

    @property
    def error(self) -> str:
        return next((line.removeprefix("error ") for line in self.messages if line.startswith("error ")), "")

    def installed(self) -> set[str]:
        return {word for line in self.calls if " install " in line for word in line.split() if not word.startswith("-")}


def bake(
    folder: Path,
    *,
    offered: tuple[str, ...],
    newer: str = "",
    exact: bool = False,
    running: str = RUNNING,
    images: str = f"installed linux-image-{RUNNING}\ninstalled linux-image-virtual\n",
    packages: tuple[str, ...] = ("make",),
    family: str = "ubuntu",
    built_with: str = "",
    free: int = 8000,
    grown: int | None = None,
    there: tuple[str, ...] = (),
) -> Baked:
    """Run the script that a seed brings along, in a root that has the host's programs and stand-ins before them."""
    recipe = catalog.load_recipe(family)
    values = {
        "KERNEL": [],
        "EXACT": ["yes"] if exact else [],
        "PACKAGES": packages,
        "OPTIONAL": recipe.optional,
        "HEADERS": [recipe.headers],
        "CMDLINE": ["console=ttyS0"],
    }
    made = seed_files(
        recipe.user_data,
        script=catalog.insert_configure(recipe.bake, recipe),
        values=values,
        authorized_key="k",
        instance="i",
    )
    script = yaml.safe_load(made["user-data"])["write_files"][-1]["content"]
    root = folder / "root"
    for place in PLACES:
        (root / place).mkdir(parents=True)
    (root / "lib/modules" / running).mkdir()
    for libraries in Path("/usr/lib").glob("*-linux-gnu"):
        (root / "lib" / libraries.name).symlink_to(libraries)
    for file in ("calls", "dev/kmsg", "dev/null", "proc/sys/kernel/printk"):
        (root / file).touch()
    (root / f"boot/vmlinuz-{running}").touch()
    (root / "running").write_text(f"{running}\n")
    (root / "images").write_text(images)
    (root / "etc/ssh/ssh_host_ed25519_key.pub").write_text("ssh-ed25519 AAAA lab\n")
    (root / "offered").write_text("".join(f"{name}\n" for name in offered))
    # A file keeps only what was written to it last, unlike the kernel's log.
    (root / "bake.sh").write_text(script.replace("> /dev/kmsg", ">> /dev/kmsg"))
    (root / "there").write_text("".join(f"{name}\n" for name in there))
    (root / "free").write_text(f"{free}\n")
    (root / "sys/class/block/vda1/partition").write_text("1\n")
    if grown is not None:
        (root / "grown").write_text(f"{grown}\n")
    if built_with:
        (root / "lib/modules" / running / "build").mkdir()
        (root / "lib/modules" / running / "build/Makefile").touch()
        (root / "lib/modules" / running / "build/.config").write_text(f'CONFIG_CC_VERSION_TEXT="{built_with}"\n')
    if newer:
        (root / "newer").write_text(newer)
    for name, text in STAND_INS.items():
        (root / "bin-first" / name).write_text(f"#!/bin/sh\n{text}\n")
        (root / "bin-first" / name).chmod(0o755)
    usr = [word for name in ("bin", "sbin", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")]
    argv = [
        *("bwrap", "--unshare-all", "--die-with-parent", "--bind", str(root), "/", "--ro-bind", "/usr", "/usr", *usr),
        *("--dev-bind", "/dev/null", "/dev/null", "--setenv", "PATH", "/bin-first:/usr/bin:/usr/sbin"),
        *("sh", "/bake.sh"),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    console = (root / "dev/kmsg").read_text()
    assert console, done.stderr
    messages = [line.partition("kmlab-bake: ")[2] for line in console.splitlines()]
    return Baked(messages, (root / "calls").read_text().splitlines())


def test_the_headers_of_the_running_kernel_are_installed(tmp_path: Path) -> None:
    baked = bake(tmp_path, offered=(f"linux-headers-{RUNNING}",))
    assert baked.messages[-1] == f"done {RUNNING}", baked.messages
    assert {"make", f"linux-headers-{RUNNING}"} <= baked.installed()
    assert not any(name.startswith("linux-modules-extra") for name in baked.installed())


def test_extra_modules_are_installed_if_the_archive_has_them(tmp_path: Path) -> None:
    extra = f"linux-modules-extra-{RUNNING}"
    assert extra in bake(tmp_path, offered=(f"linux-headers-{RUNNING}", extra)).installed()


def test_debian_asks_for_no_such_package(tmp_path: Path) -> None:
    extra = f"linux-modules-extra-{RUNNING}"
    baked = bake(tmp_path, offered=(f"linux-headers-{RUNNING}", extra), family="debian")
    assert baked.messages[-1] == f"done {RUNNING}" and extra not in baked.installed()


def test_a_kernel_whose_headers_left_the_archive_is_replaced_by_a_newer_one_with_a_note(tmp_path: Path) -> None:
    baked = bake(tmp_path, offered=(f"linux-headers-{NEWER}",), newer=NEWER)
    assert baked.messages[-1] == f"done {NEWER}", baked.messages
    assert {"linux-image-virtual", "linux-headers-virtual"} <= baked.installed()
    (note,) = [line for line in baked.messages if line.startswith("note ")]
    assert RUNNING in note and NEWER in note and "restarts" in note


def test_without_a_metapackage_the_newest_kernel_of_the_flavour_is_found_by_its_name(
    tmp_path: Path,
) -> None:
    # As dpkg-query said it in an image of Debian's that came with one kernel and without linux-image-cloud-amd64.
    images = "installed linux-image-6.1.0-52-cloud-amd64\nnot-installed linux-image-6.1.0-52-cloud-amd64-unsigned\n"
    old, new = "6.1.0-52-cloud-amd64", "6.1.0-56-cloud-amd64"
    baked = bake(tmp_path, offered=(f"linux-headers-{new}",), newer=new, running=old, images=images, family="debian")
    assert baked.messages[-1] == f"done {new}", baked.messages
    assert {"linux-image-cloud-amd64", "linux-headers-cloud-amd64"} <= baked.installed()


def test_with_kernel_exact_that_is_an_error(tmp_path: Path) -> None:
    baked = bake(tmp_path, offered=(), newer=NEWER, exact=True)
    assert f"no linux-headers-{RUNNING} any more" in baked.error and "exact" in baked.error
    assert baked.calls[-1] == "poweroff" and not any(line.startswith("done") for line in baked.messages)


def test_without_a_newer_kernel_it_is_an_error(tmp_path: Path) -> None:
    assert "nor a kernel newer than" in bake(tmp_path, offered=()).error


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    baked = bake(tmp_path, offered=(f"linux-headers-{RUNNING}",), packages=("make", "no-such-package"))
    assert "Unable to locate package no-such-package" in baked.error


def test_no_user_has_a_password_and_no_timer_runs(tmp_path: Path) -> None:
    baked = bake(tmp_path, offered=(f"linux-headers-{RUNNING}",))
    assert {"usermod --password * root", "usermod --password * ubuntu"} <= set(baked.calls)
    units = tmp_path / "root/etc/systemd/system"
    for unit in ("apt-daily.timer", "unattended-upgrades.service", "snapd.service", "motd-news.timer"):
        assert (units / unit).readlink() == Path("/dev/null")
    assert (tmp_path / "root/etc/cloud/cloud-init.disabled").exists()


@pytest.mark.parametrize(
    ("built_with", "compiler"),
    [
        ("x86_64-linux-gnu-gcc-99 (Ubuntu 99.3.0-1ubuntu1~22.04) 99.3.0", "gcc-99"),
        ("gcc-99 (Debian 99.2.0-14+deb12u1) 99.2.0", "gcc-99"),
        ("aarch64-linux-gnu-gcc (Ubuntu 99.1.0-4) 99.1.0", "gcc-99"),
        ("Ubuntu clang version 99.1.3 (1ubuntu1)", None),
        ("clang (Ubuntu 1:99) 99.1.3", "clang-99"),
    ],
)
def test_the_compiler_that_the_kernel_was_built_with_is_installed(
    tmp_path: Path, built_with: str, compiler: str | None
) -> None:
    """Ubuntu 22.04's newer kernels (HWE) are built with gcc-12, its gcc is 11, and the headers need no package."""
    baked = bake(tmp_path, offered=(f"linux-headers-{RUNNING}", "gcc-99", "clang-99"), built_with=built_with)
    assert baked.messages[-1] == f"done {RUNNING}", baked.messages
    assert {name for name in baked.installed() if "-99" in name} == ({compiler} if compiler else set())


def test_the_compiler_is_installed_also_if_nothing_else_is_missing(tmp_path: Path) -> None:
    headers = f"linux-headers-{RUNNING}"
    baked = bake(tmp_path, offered=(headers, "gcc-99"), packages=(), built_with="gcc-99 (x) 99.1.0", there=(headers,))
    assert baked.installed() & {"gcc-99", headers} == {"gcc-99"}
    order = [line.split()[6] for line in baked.calls if line.startswith("apt-get")]
    assert order == ["update", "install", "clean"]
    assert baked.messages[-1] == f"done {RUNNING}"


def test_the_default_compiler_is_enough_if_it_is_the_right_one(tmp_path: Path) -> None:
    text = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    baked = bake(tmp_path, offered=(f"linux-headers-{RUNNING}",), built_with=f"x86_64-linux-gnu-gcc (Debian) {text}")
    assert baked.messages[-1] == f"done {RUNNING}"
    assert not any(name.startswith("gcc-") for name in baked.installed())
    assert not any(line.startswith("note ") for line in baked.messages)


def test_a_compiler_that_the_archive_does_not_have_is_a_note(tmp_path: Path) -> None:
    baked = bake(tmp_path, offered=(f"linux-headers-{RUNNING}",), built_with="gcc-99 (Ubuntu) 99.3.0")
    (note,) = [line for line in baked.messages if line.startswith("note ")]
    assert "built with gcc-99, which the archive does not have" in note
    assert baked.messages[-1] == f"done {RUNNING}"


def test_a_root_that_did_not_grow_is_grown_before_packages_are_installed(tmp_path: Path) -> None:
    baked = bake(tmp_path, offered=(f"linux-headers-{RUNNING}",), free=300, grown=4000)
    assert baked.messages[-1] == f"done {RUNNING}", baked.messages
    grow = baked.calls.index("growpart /dev/vda 1 with TMPDIR=/run")
    assert baked.calls[grow + 1] == "resize2fs /dev/vda1"
    assert grow < min(number for number, line in enumerate(baked.calls) if line.startswith("apt-get"))


def test_a_root_that_cannot_grow_is_an_error_before_packages_are_installed(tmp_path: Path) -> None:
    baked = bake(tmp_path, offered=(f"linux-headers-{RUNNING}",), free=300)
    assert baked.error == "the root file system has only 300 MiB free and does not grow: resize2fs: nothing to do"
    assert not any(line.startswith("apt-get") for line in baked.calls)


def test_a_root_with_enough_space_is_left_alone(tmp_path: Path) -> None:
    baked = bake(tmp_path, offered=(f"linux-headers-{RUNNING}",))
    assert not any(line.startswith(("growpart", "resize2fs")) for line in baked.calls)


def test_needrestart_does_not_restart_services_after_each_call(tmp_path: Path) -> None:
    baked = bake(tmp_path, offered=(f"linux-headers-{RUNNING}",))
    assert {line for line in baked.calls if line.startswith("needrestart")} == {"needrestart 1"}
