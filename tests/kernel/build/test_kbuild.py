"""kmlab.kernel.kbuild: what a folder holds, and how it is built."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from kmlab.kernel.build.explain import build_reason
from kmlab.kernel.build.kbuild import Folder, inspect_folder, make_commands, quiet_environment
from tests.builds import OLD

GUIDE = """\
obj-m += hello.o

KDIR ?= /lib/modules/$(shell uname -r)/build
PWD := $(CURDIR)

all:
\tmake -C $(KDIR) M=$(PWD) modules
"""


def test_the_guide_s_makefile_is_kbuild() -> None:
    folder = inspect_folder({"Makefile": GUIDE})
    assert (folder.kind, folder.file, folder.modules) == ("kbuild", "Makefile", ("hello",))


def test_a_kbuild_file_goes_before_a_makefile() -> None:
    folder = inspect_folder({"Kbuild": "obj-m := a.o b-c.o\n", "Makefile": "all:\n\tmake -C $(K) M=$(PWD)\n"})
    assert (folder.kind, folder.file, folder.modules) == ("kbuild", "Kbuild", ("a", "b_c"))
    assert folder.has_makefile


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("obj-m:=a.o", ("a",)),
        ("ifneq ($(KERNELRELEASE),)\n  obj-m := a.o\nelse\nall:\n\tmake\nendif\n", ("a",)),
        ("obj-m := a.o \\\n\tb.o\n", ("a", "b")),
        ("obj-m := a.o # and not b.o\n", ("a",)),
        ("obj-$(CONFIG_FOO) += foo.o\n", ("foo",)),
        ("obj-m := $(NAME).o\n", ()),
    ],
)
def test_obj_m_is_read_in_its_forms(text: str, modules: tuple[str, ...]) -> None:
    folder = inspect_folder({"Makefile": text})
    assert folder.kind == "kbuild" and folder.modules == modules


def test_options_and_folders_beneath_are_told() -> None:
    folder = inspect_folder({"Kbuild": "obj-$(CONFIG_FOO) += foo.o\nobj-m += sub/ deep/er/\n"})
    assert folder.configs == ("CONFIG_FOO",) and folder.subdirs == ("sub", "deep/er")


def test_obj_m_inside_a_command_is_a_wrapper() -> None:
    folder = inspect_folder({"Makefile": "all:\n\t$(MAKE) -C $(KDIR) M=$(PWD)/src obj-m=x.o modules\n"})
    assert folder.kind == "wrapper" and folder.modules == ()


def test_a_folder_without_make_files_is_none() -> None:
    assert inspect_folder({"a.c": "obj-m := a.o"}).kind == "none"
    assert inspect_folder({}) == Folder("none", None)
    assert make_commands("none", PurePosixPath("/m"), OLD, 2) == []


def test_an_empty_makefile_is_none() -> None:
    assert inspect_folder({"Makefile": "# nothing yet\n"}).kind == "none"


def test_old_ways_are_noticed() -> None:
    folder = inspect_folder({"Makefile": "EXTRA_CFLAGS += -Iinc\nobj-m := a.o\nall:\n\tmake SUBDIRS=$(PWD)\n"})
    assert folder.extra_cflags and folder.old_subdirs


def test_kbuild_is_tried_first_then_its_own_make() -> None:
    first, second = make_commands("kbuild", PurePosixPath("/root/m y"), OLD, 4)
    build = f"/lib/modules/{OLD}/build"
    assert first.argv == ("make", "-C", build, "M=/root/m y", "modules", "-j4")
    assert second.argv[:2] == ("make", "-j4")
    assert {f"KDIR={build}", f"KERNELDIR={build}", f"KERNEL_DIR={build}", f"KERNEL_SRC={build}"} < set(second.argv)
    assert {f"KVER={OLD}", f"KVERSION={OLD}"} < set(second.argv)
    assert all(("PWD", "/root/m y") in way.environment for way in (first, second))


def test_kernelrelease_is_never_set() -> None:
    for way in make_commands("kbuild", PurePosixPath("/m"), OLD, 1):
        assert not any("KERNELRELEASE" in word for word in way.argv)
    assert "KERNELRELEASE" in quiet_environment()


def test_a_wrapper_is_built_by_its_own_make_only() -> None:
    assert [way.how for way in make_commands("wrapper", PurePosixPath("/m"), OLD, 1)] == ["its own make"]


@pytest.mark.parametrize(
    "filling", ["\n", " ", "\t", "a", "a\n\n", "a ", "obj-m ", "obj-m\n", "export ", "\\\n", "-I ", "\r"]
)
def test_a_make_file_full_of_one_thing_takes_no_time_that_grows_with_its_square(filling: str) -> None:
    text = filling * (400_000 // len(filling))
    assert inspect_folder({"Makefile": text}).modules == ()
    assert build_reason(text, 2, (), "6.1.0-1-amd64") is not None
