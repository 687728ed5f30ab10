"""What make files and sources name above a module's folder is found, and nothing that only looks like it."""

from __future__ import annotations

import pytest

from kmlab.kernel.build.outward import candidates, is_read, outward_paths


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("ccflags-y += -I$(src)/../include\n", ["../include"]),
        ("EXTRA_CFLAGS += -I${PWD}/../include -I.\n", ["../include"]),
        ("EXTRA_CFLAGS += -I $(shell pwd)/../include\n", ["../include"]),
        ("include ../../common.mk\n", ["../../common.mk"]),
        ("-include $(M)/../config.mk\n", ["../config.mk"]),
        ("VERSION := $(shell cat ../VERSION)\n", ["../VERSION"]),
        ("obj-m += x.o\nx-y := main.o ../lib/list.o\n", ["../lib/list.o"]),
        ("TOP := $(abspath $(src)/../..)\n", ["../.."]),
        ("TOP := $(realpath ..)\nccflags-y += -I$(TOP)/include\n", [".."]),
        ("SRCS := $(wildcard ../common/*.c)\n", ["../common/*.c"]),
        ("ROOT := $(shell dirname $(PWD))\n", [".."]),
        ("INCLUDES := -I$(dir $(CURDIR))include\n", ["../include"]),
        ("\t$(MAKE) -C ../lib M=$(PWD)/../lib\n", ["../lib"]),
        ("a := \\\n  ../one \\\n  ../two\n", ["../one", "../two"]),
        ("# see ../README\nobj-m := a.o\n", []),
        ("all:\n\t@echo done... and gone..\n", []),
        ("ccflags-y += -I/opt/../usr/include -I$(srctree)/drivers/../include\n", []),
    ],
)
def test_a_makefile_names_what_lies_above(text: str, paths: list[str]) -> None:
    assert list(outward_paths("Makefile", text)) == paths


@pytest.mark.parametrize(
    ("path", "text", "paths"),
    [
        ("a.c", '#include "../common/numbers.h"\n', ["../common/numbers.h"]),
        ("a.c", "  #  include <../x/../y.h>\n", ["../y.h"]),
        ("sub/a.c", '#include "../own.h"\n#include "../../far.h"\n', ["own.h", "../far.h"]),
        ("a.c", 'pr_info("../no");\n/* ../no */\n', []),
        ("a.c", "#include <linux/module.h>\n", []),
    ],
)
def test_a_source_names_what_it_includes(path: str, text: str, paths: list[str]) -> None:
    assert list(outward_paths(path, text)) == paths


def test_an_object_stands_for_its_source_and_a_pattern_for_its_folder() -> None:
    assert "../lib/list.c" in candidates("../lib/list.o")
    assert candidates("../common/*.c")[-1] == "../common"
    assert candidates("../VERSION") == ("../VERSION",)


def test_only_make_files_and_sources_are_read() -> None:
    assert all(map(is_read, ("Makefile", "Kbuild", "rules.mk", "Makefile.common", "a.c", "b.h", "dkms.conf")))
    assert not any(map(is_read, ("README", "a.ko", "notes.txt")))
