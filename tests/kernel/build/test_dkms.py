"""What a dkms.conf says is read by bash, and taken as dkms takes it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kmlab.kernel.build.dkms import BUILD, READ_CONF, DkmsConf, parse_conf, version_key

RELEASE = "6.1.0-9-amd64"
CONF = """\
PACKAGE_NAME="probe"
PACKAGE_VERSION="1.2~rc1"
BUILT_MODULE_NAME[0]="one"
BUILT_MODULE_NAME[1]="two"
BUILT_MODULE_LOCATION[1]="src/"
DEST_MODULE_LOCATION[0]="/kernel/drivers/misc"
DEST_MODULE_LOCATION[1]="/updates/dkms"
MAKE[0]="make KVER=${kernelver} -C $source_tree/$module-$module_version TREE=${dkms_tree}"
PATCH[0]="all.patch"
PATCH[1]="old.patch"
PATCH_MATCH[1]="^5\\\\."
"""


def conf_of(folder: Path, text: str, arch: str = "x86_64") -> DkmsConf:
    (folder / "dkms.conf").write_text(text)
    words = [RELEASE, arch, "/tree", "/src"]
    said = subprocess.run(
        ["bash", "-c", READ_CONF, "bash", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    return parse_conf(said.stdout)


def test_names_modules_and_commands_are_those_of_dkms(tmp_path: Path) -> None:
    conf = conf_of(tmp_path, CONF)
    assert (conf.name, conf.version, conf.mistake()) == ("probe", "1.2~rc1", None)
    assert [module.path for module in conf.modules()] == ["one.ko", "src/two.ko"]
    command = conf.make_command(RELEASE, "/b", 3, clang=False)
    assert command == f"make -j3 KERNELRELEASE={RELEASE} KVER={RELEASE} -C /src/probe-1.2~rc1 TREE=/tree"
    assert conf.patches(RELEASE) == ["all.patch"]
    assert conf.patches("5.10.0-1-amd64") == ["all.patch", "old.patch"]


def test_a_short_conf_gets_dkms_s_own_defaults(tmp_path: Path) -> None:
    conf = conf_of(tmp_path, "PACKAGE_NAME=solo\nPACKAGE_VERSION=#MODULE_VERSION#\nDEST_MODULE_LOCATION=/extra\n")
    assert [module.path for module in conf.modules()] == ["solo.ko"] and conf.version == "0"
    made = conf.make_command(RELEASE, "/t/solo/0/build", 2, clang=True)
    assert made == f"make -j2 KERNELRELEASE={RELEASE} -C /lib/modules/{RELEASE}/build M=/t/solo/0/build LLVM=1"


def test_a_make_in_quotes_gets_no_kernelrelease(tmp_path: Path) -> None:
    conf = conf_of(tmp_path, "PACKAGE_NAME=q\nPACKAGE_VERSION=1\nMAKE=\"'make' all\"\n")
    assert conf.make_command(RELEASE, "/b", 2, clang=False) == "'make' all"


def test_the_make_that_matches_the_kernel_is_taken(tmp_path: Path) -> None:
    text = "PACKAGE_NAME=m\nPACKAGE_VERSION=1\nMAKE[0]=old\nMAKE_MATCH[0]='^5'\nMAKE[1]=new\nMAKE_MATCH[1]='^6'\n"
    assert conf_of(tmp_path, text).make_command(RELEASE, "/b", 1, clang=False) == "new"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("BUILD_EXCLUSIVE_KERNEL='^5\\.'", "kernels that match `^5\\.` (BUILD_EXCLUSIVE_KERNEL)"),
        ("BUILD_EXCLUSIVE_KERNEL='^[[:digit:]]'", None),
        ("BUILD_EXCLUSIVE_KERNEL_MIN=6.10", "Linux 6.10 and newer"),
        ("BUILD_EXCLUSIVE_KERNEL_MIN=5.9", None),
        ("BUILD_EXCLUSIVE_KERNEL_MAX=6.0", "Linux 6.0 and older"),
        ("OBSOLETE_BY=6.0", "Linux 6.0 and older"),
        ("BUILD_EXCLUSIVE_ARCH='^(i686|aarch64)$'", "machines that match"),
        ("BUILD_EXCLUSIVE_CONFIG='CONFIG_PCI CONFIG_USB'", "kernels with CONFIG_USB"),
        ("BUILD_EXCLUSIVE_CONFIG='!CONFIG_PCI'", "kernels without CONFIG_PCI"),
        ("BUILD_EXCLUSIVE_CONFIG='CONFIG_PCI !CONFIG_USB'", None),
        ("[ -e /no/such ] || BUILD_EXCLUSIVE_KERNEL='REQUIRES a file'", "`REQUIRES a file`"),
    ],
)
def test_a_kernel_can_be_ruled_out_with_a_reason(tmp_path: Path, line: str, why: str | None) -> None:
    head = "PACKAGE_NAME=x\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME=x\nDEST_MODULE_LOCATION=/updates\n"
    found = conf_of(tmp_path, head + line + "\n").excluded(RELEASE, "x86_64", {"PCI": "y"})
    assert (why is None) == (found is None) and (why or "") in (found or "")


def test_one_of_two_modules_can_be_ruled_out(tmp_path: Path) -> None:
    conf = conf_of(tmp_path, CONF + "BUILD_EXCLUSIVE_KERNEL[1]='^5'\n")
    assert conf.excluded(RELEASE, "x86_64", {}) is None
    assert [conf.exclusion(m.index, RELEASE, "x86_64", {}) is None for m in conf.modules()] == [True, False]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("PACKAGE_VERSION=1\n", "names no PACKAGE_NAME"),
        ("PACKAGE_NAME=../x\nPACKAGE_VERSION=1\n", "cannot be part of a path"),
        ("PACKAGE_NAME=x\nPACKAGE_VERSION=1\nDEST_MODULE_LOCATION=/boot\n", "wants it to begin with /kernel"),
        ("PACKAGE_NAME=x\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME=x.ko\nDEST_MODULE_LOCATION=/updates\n", "ends in .ko"),
        (
            "PACKAGE_NAME=x\nPACKAGE_VERSION=1\nBUILT_MODULE_LOCATION=../../y\nDEST_MODULE_LOCATION=/updates\n",
            "lies outside",
        ),
        ("exit 3\n", "names no PACKAGE_NAME"),
    ],
)
def test_what_dkms_would_refuse_is_said(tmp_path: Path, text: str, why: str) -> None:
    assert why in (conf_of(tmp_path, text).mistake() or "")


def test_versions_compare_as_numbers() -> None:
    assert version_key("6.9") < version_key("6.10.0-1-amd64") < version_key("6.12.117+deb12-amd64")
    assert version_key("6.1.0-9") > version_key("6.1")


def test_the_build_is_a_copy_with_patches_scripts_and_variables(tmp_path: Path) -> None:
    source, tree = tmp_path / "src", tmp_path / "src/.kmlab/dkms"
    (source / "patches").mkdir(parents=True)
    (source / "a.c").write_text("old\n")
    (source / "patches/a.patch").write_text("--- a/a.c\n+++ b/a.c\n@@ -1 +1 @@\n-old\n+new\n")
    (source / "pre.sh").write_text('#!/bin/sh\necho "$kernelver $module $1" > said\n')
    (source / "pre.sh").chmod(0o755)
    assert shutil.which("patch")
    build = tree / "x/1/build"
    command = "cat a.c said > out; test -d $source_tree/x-1/patches"
    words = [build, RELEASE, "x86_64", tree, tree / "src", "x", "1", command, "pre.sh word", "a.patch"]
    for _ in range(2):
        subprocess.run(["bash", "-c", BUILD, "bash", *map(str, words)], cwd=source, check=True)
    assert (build / "out").read_text() == f"new\n{RELEASE} x word\n"
    assert (source / "a.c").read_text() == "old\n"
