"""kmlab.kernel.build.explain and apichanges: why a build failed, in one sentence."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from kmlab.kernel.build.api_changes import find_api_change, find_missing_include, parse_release
from kmlab.kernel.build.diagnostics import Diagnostic, parse_diagnostics
from kmlab.kernel.build.explain import build_reason
from kmlab.kernel.build.kbuild import inspect_folder
from tests.builds import LOGS, NEW, OLD, reason, reason_of


@pytest.mark.parametrize("header", ["stdio.h", "string.h", "sys/types.h"])
def test_the_c_library_is_said_not_to_be_there(header: str) -> None:
    assert "C library" in reason_of(f"/m/a.c:3:10: fatal error: {header}: No such file or directory")


def folder_reason(line: str, exit_code: int, **about: object) -> str:
    folder = replace(inspect_folder({"Makefile": "all:\n\t$(MAKE) -C src\n"}), **about)  # type: ignore[arg-type]
    said = build_reason(line, exit_code, parse_diagnostics(line, PurePosixPath("/m")), OLD, folder=folder)
    assert said is not None
    return said


def test_a_link_that_leads_out_of_the_folder_is_said_not_to_come_along() -> None:
    line = "make[1]: *** No rule to make target '/m/a.c', needed by '/m/a.o'.  Stop."
    assert "a.c is a link to ../a.c" in folder_reason(line, 2, links_out=(("a.c", "../a.c"),))
    assert "link" not in folder_reason(line, 2, links_out=(("unused.c", "../unused.c"),))


def test_a_source_that_is_there_is_not_said_to_be_missing() -> None:
    line = "make[1]: *** No rule to make target 'a.o', needed by './'.  Stop."
    assert "a.c is not in the folder" in folder_reason(line, 2)
    assert "a.c is there, but make looks for it elsewhere" in folder_reason(line, 2, sources=frozenset({"a.c"}))


def test_the_folder_with_obj_m_is_named_where_the_top_builds_nothing() -> None:
    assert "src/ has obj-m: give that folder" in folder_reason("", 0, below=("src",))


def test_a_makefile_that_kbuild_does_not_see_is_said() -> None:
    line = "make[1]: *** No rule to make target '/m/Makefile'.  Stop."
    assert "by no other spelling" in folder_reason(line, 2, file=None)


def test_an_old_form_on_a_newer_kernel_is_named() -> None:
    said = reason("clang", NEW, "/srv/clang")
    assert said.startswith("mod.c:12: since Linux 6.4 class_create() takes the name only")


def test_a_forgotten_include_is_named_though_the_function_changed_later() -> None:
    assert reason("api-6.1").endswith("include <linux/device.h>.")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("undef-6.1", "not_exported_at_all() is not exported by 6.1.0-56"),
        ("license-6.1", 'add MODULE_LICENSE("GPL")'),
        ("gpl-6.1", "__class_create() is for GPL modules only"),
        ("gpl-7.3", "kernel_kobj() is for GPL modules only"),
        ("undef-7.3", "since Linux 5.7 kallsyms_lookup_name() is not exported to modules"),
        ("brace-6.12", "mod.c:11: mod_exit() begins inside of another function"),
        ("float-6.12", "mod.c:8: the kernel computes without floating point"),
        ("overflow-6.12", "mod.c:17: a write here goes beyond the object"),
        ("name-7.3", "rename mod.c, and list it in mod-y"),
        ("rule-7.3", "other.c is not in the folder"),
        ("ns-6.1", "MODULE_IMPORT_NS(DMA_BUF)"),
        ("rule-6.1", "mod.c is not in the folder"),
        ("header-6.1", "mod.c:2: 6.1.0-56-cloud-amd64 has no linux/nothere.h"),
        ("multi-6.1", "x is defined twice"),
    ],
)
def test_reasons_name_the_cause_and_the_remedy(name: str, words: str) -> None:
    assert words in reason(name)


def test_kallsyms_lookup_name_is_known_to_be_gone() -> None:
    assert "since Linux 5.7 kallsyms_lookup_name()" in reason("modpost-5.10", "5.10.0-46-amd64", "/srv/old")


def test_success_without_a_module_has_its_reason() -> None:
    about = inspect_folder({"Makefile": "obj-m :=\n"})
    said = build_reason("make: Nothing to be done", 0, [], OLD, folder=about)
    assert said is not None and "built no .ko" in said and "obj-m" in said
    assert build_reason("", 0, [], OLD, built=["a.ko"]) is None


def test_success_without_a_module_names_the_option_it_depends_on() -> None:
    about = inspect_folder({"Makefile": "obj-$(CONFIG_FOO) += foo.o\n"})
    said = build_reason("", 0, [], OLD, folder=about)
    assert said is not None and "CONFIG_FOO=m" in said


def test_missing_headers_of_the_kernel_are_named() -> None:
    log = f"make: *** /lib/modules/{OLD}/build: No such file or directory.  Stop.\n"
    said = build_reason(log, 2, parse_diagnostics(log, PurePosixPath("/m")), OLD)
    assert said is not None and f"no headers for {OLD}" in said


def test_a_missing_program_is_named() -> None:
    log = "/bin/sh: 1: bison: not found\nmake: *** [x] Error 127\n"
    said = build_reason(log, 2, parse_diagnostics(log, PurePosixPath("/m")), OLD)
    assert said is not None and "packages: [bison]" in said


def test_a_build_without_end_says_so() -> None:
    said = build_reason("", None, [], OLD)
    assert said is not None and "did not end in time" in said


def test_an_unknown_failure_quotes_the_last_words() -> None:
    said = build_reason("something odd happened\nmake: *** [x] Error 1\n", 2, [], OLD)
    assert said == "make ended with code 2: something odd happened; the build log has the rest."


def test_a_version_test_in_the_sources_is_pointed_at() -> None:
    found = [Diagnostic("a.c", 3, 1, "error", "implicit declaration of function 'strlcpy'")]
    said = build_reason("", 2, found, NEW, sources={"a.c": "#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)"})
    assert said is not None and "strscpy()" in said and "LINUX_VERSION_CODE" in said


def test_escape_codes_of_a_log_never_reach_the_reason() -> None:
    said = build_reason("\x1b]0;title\x07 boo\n", 1, [], OLD)
    assert said is not None and "\x1b" not in said and "\x07" not in said


I2C_NEW, I2C_OLD = (
    "int (*)(struct i2c_client *)",
    "int (*)(struct i2c_client *, const struct i2c_device_id *)",
)


@pytest.mark.parametrize(
    ("message", "release", "words"),
    [
        ("too many arguments to function 'class_create'", NEW, "since Linux 6.4"),
        ('macro "class_create" requires 2 arguments, but only 1 given', OLD, "only since Linux 6.4"),
        ('macro "access_ok" passed 3 arguments, but takes just 2', OLD, "since Linux 5.0"),
        ("passing argument 4 of 'proc_create' from incompatible pointer type", OLD, "since Linux 5.6"),
        ("implicit declaration of function 'vm_flags_set'", OLD, "only since Linux 6.3"),
        ("assignment of read-only member 'vm_flags'", NEW, "since Linux 6.3"),
        ("implicit declaration of function 'from_timer'", "6.16.3-amd64", "timer_container_of()"),
        ("implicit declaration of function 'timer_container_of'", NEW, "only since Linux 6.16"),
        ("implicit declaration of function 'del_timer_sync'", "7.2.13-amd64", "timer_delete_sync()"),
        ("'no_llseek' undeclared here (not in a function)", NEW, "leave .llseek out"),
        ("asm/unaligned.h: No such file or directory", NEW, "linux/unaligned.h"),
        ("'struct mm_struct' has no member named 'mmap_sem'", OLD, "mmap_lock"),
        (f"initialization of '{I2C_NEW}' from incompatible pointer type '{I2C_OLD}'", NEW, "since Linux 6.3"),
        (
            f"initialization of '{I2C_OLD}' from incompatible pointer type '{I2C_NEW}'",
            OLD,
            "only since Linux 6.3",
        ),
        (
            "initialization of 'void (*)(struct platform_device *)' from incompatible pointer type "
            "'int (*)(struct platform_device *)'",
            NEW,
            "since Linux 6.11",
        ),
        (
            "expected ',' or ';' before 'DMA_BUF'\nmod.c:9: in expansion of macro 'MODULE_IMPORT_NS'",
            "6.13.1",
            "as a string",
        ),
    ],
)
def test_a_change_of_the_kernel_is_recognised(message: str, release: str, words: str) -> None:
    typographic = message.replace("'", "\u2019")
    for spelled in (message, typographic):
        said = find_api_change(spelled, release)
        assert said is not None and words in said and release in said


@pytest.mark.parametrize(
    ("message", "release"),
    [
        ("too many arguments to function 'my_own'", NEW),
        ("implicit declaration of function 'strlcpy'", OLD),
        ("implicit declaration of function 'from_timer'", NEW),
        ("expected ';' before 'return'", "7.2.13"),
        ("implicit declaration of function 'strlcpy'", "mainline"),
        ("'struct foo' has no member named 'owner'", NEW),
    ],
)
def test_an_error_of_the_person_s_own_is_no_change_of_the_kernel(message: str, release: str) -> None:
    assert find_api_change(message, release) is None


def test_an_include_is_proposed_for_what_is_forgotten_most() -> None:
    assert find_missing_include("implicit declaration of function \u2018kmalloc\u2019") == "linux/slab.h"
    assert find_missing_include("call to undeclared function 'msleep'; ISO C99") == "linux/delay.h"
    assert find_missing_include("implicit declaration of function 'my_own'") is None


def test_releases_are_parsed() -> None:
    assert parse_release(OLD) == (6, 1) and parse_release("x") is None


def test_a_module_without_types_of_its_own_is_told_what_the_kernels_tools_want() -> None:
    said = reason("btf-7.3", "7.3.4+deb13-cloud-amd64", "/var/lib/kmlab/modules/kallsyms")
    assert said.startswith("the tools of 7.3.4+deb13-cloud-amd64 could not sort") and said.endswith("such as a struct.")


WIFI = "6.12.117+deb12-cloud-amd64"


@pytest.mark.parametrize(
    ("name", "release", "folder", "words"),
    [
        ("objtool-6.16", "6.16.1", "/srv/x", "lamp-combined.o: lamp_sched_out(): call to {dynamic}()"),
        ("objtool-6.16", "6.16.1", "/srv/x", "OBJECT_FILES_NON_STANDARD_lamp-combined.o := y"),
        ("notfound-5.16", "5.16.0-demo-amd64", "/root/lamp", "lamp.c:17: lamp_types.h is not found"),
        ("gso-6.5", "6.5.0-demo", "/root/lamp", "lamp.c:74: since Linux 6.5"),
        ("gso-6.5", "6.4.12", "/root/lamp", "include <net/gso.h>, and this 6.4.12 has taken that over"),
        ("clang-kernel-6.6", "6.6.30-demo", None, "was built by clang"),
        ("clang-kernel-6.6", "6.6.30-demo", None, "LLVM=1"),
        ("compiler-6.1", OLD, None, f"the headers of {OLD} want the compiler gcc-11"),
        ("compiler-6.1", OLD, None, "add gcc-11 to the guest's packages"),
        ("asn1-6.1", OLD, None, "come without scripts/asn1_compiler"),
        ("rust-6.1", OLD, None, "without CONFIG_RUST"),
        ("wifi-6.12", WIFI, None, "wifi.c:26: since Linux 6.13 cfg80211's set_monitor_channel() takes"),
        ("many-6.1", OLD, None, "lamp_absent_0() (and 23 more) is not exported"),
        ("genhd-6.1", OLD, None, "since Linux 5.18 there is no linux/genhd.h: include <linux/blkdev.h>"),
        ("backported-6.1", OLD, None, "backported.c:13: since Linux 6.8 struct usb_driver has .driver"),
        ("subsystem-6.1", OLD, None, "usb_register_driver() (and 1 more) belongs to CONFIG_USB"),
        ("subsystem-6.1", OLD, None, "the flavour generic has it (kernel: generic)"),
        ("subsystem-6.1", "6.1.0-56-amd64", None, "KBUILD_EXTRA_SYMBOLS"),
    ],
)  # fmt: skip
def test_what_people_meet_is_named_with_its_way_out(name: str, release: str, folder: str | None, words: str) -> None:
    assert words in reason(name, release, folder)


def test_extra_cflags_is_blamed_on_no_kernel_that_honours_it() -> None:
    about = inspect_folder({"Makefile": "EXTRA_CFLAGS += -O2\nobj-m := gone_header.o\n"})
    assert "EXTRA_CFLAGS" not in reason("genhd-6.1", about=about)
    line = "/m/a.c:3:10: fatal error: own.h: No such file or directory"
    assert "EXTRA_CFLAGS" not in folder_reason(line, 2, extra_cflags=True)
    about = replace(about, extra_cflags=True)
    said = build_reason(line, 2, parse_diagnostics(line, PurePosixPath("/m")), "6.15.1", folder=about)
    assert said is not None and "since Linux 6.15 EXTRA_CFLAGS is ignored" in said


def test_headers_outside_of_the_folder_are_said_not_to_come_along() -> None:
    about = inspect_folder({"Makefile": "EXTRA_CFLAGS += -I$(PWD)/../include\nobj-m := extra_number.o\n"})
    said = reason("cflags-6.1", about=about)
    assert "extra_number.h is not found: $(PWD)/../include lies outside of the module's folder" in said
    line = "/m/probe.c:3:10: fatal error: ../common/numbers.h: No such file or directory"
    assert "../common/numbers.h lies outside of the module's folder" in folder_reason(line, 2)
    line = "/m/sub/probe.c:3:10: fatal error: ../common/numbers.h: No such file or directory"
    assert "outside" not in folder_reason(line, 2)


@pytest.mark.parametrize(
    ("flag", "out"),
    [
        ("-I$(PWD)/../include", True),
        ("-I$(src)/../../x", True),
        ("-I../x", True),
        ("-I/home/me/x", True),
        ("-I$(src)/include", False),
        ("-I$(srctree)/drivers/usb", False),
        ("-Iinclude", False),
        ("-I$(src)/a/../b", False),
        ("-I/lib/modules/x/build/include", False),
        ("-I$(KDIR)/include", False),
    ],
)
def test_a_folder_for_headers_that_lies_outside_is_noticed(flag: str, out: bool) -> None:
    assert bool(inspect_folder({"Makefile": f"ccflags-y += {flag}\nobj-m := a.o\n"}).includes_out) == out


def test_an_option_that_the_kernel_has_is_not_to_blame() -> None:
    assert "CONFIG_USB" not in reason("subsystem-6.1", config={"USB": "m"})
    said = reason("subsystem-6.1", "6.1.0-own", config={"NET": "y"})
    assert "CONFIG_USB" in said and "such as one of your own" in said


def test_a_rust_module_on_a_kernel_with_rust_wants_its_compiler() -> None:
    log = "  RUSTC [M] /m/a.o\n/bin/sh: 1: rustc: not found\n"
    config = {"RUST": "y", "RUSTC_VERSION_TEXT": '"rustc 1.85.0"'}
    said = build_reason(log, 2, parse_diagnostics(log, PurePosixPath("/m")), NEW, config=config)
    assert said is not None and "its own compiler, rustc 1.85.0" in said
    said = build_reason(log, 2, parse_diagnostics(log, PurePosixPath("/m")), NEW, config={"USB": "y"})
    assert said is not None and "without CONFIG_RUST" in said


def test_a_clang_kernel_is_named_before_an_error_without_a_known_cause() -> None:
    line = "/m/a.c:3:1: error: odd"
    found = parse_diagnostics(line, PurePosixPath("/m"))
    said = build_reason(line, 2, found, NEW, config={"CC_IS_CLANG": "y"})
    assert said is not None and "LLVM=1" in said


def test_a_version_test_is_pointed_at_where_a_stable_release_took_the_change_over() -> None:
    sources = {"backported.c": "#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)"}
    said = reason("backported-6.1", sources=sources)
    assert f"this {OLD} has taken that over; the sources test LINUX_VERSION_CODE" in said


def test_a_callback_of_another_type_is_named_with_both() -> None:
    text = (LOGS / "wifi-6.12.log").read_text()
    scan = text[text.index("/srv/wifi/wifi.c:29") :]
    said = build_reason(scan, 2, parse_diagnostics(scan, PurePosixPath("/srv/wifi")), WIFI)
    assert said is not None and f"wifi.c:29: lamp_ops.scan is of another type in {WIFI}: it takes `int (*)(" in said
    assert "struct cfg80211_scan_request *)`, and the module has `int (*)(struct wiphy *, int)`" in said


def test_a_thousand_errors_are_looked_through_quickly() -> None:
    words = "initialization of 'int (*)(struct x *, int, u8)' from incompatible pointer type 'int (*)(int)'"
    line = f"/m/a.c:{{n}}:1: error: {words}"
    log = "\n".join(line.format(n=n) for n in range(20000))
    found = parse_diagnostics(log, PurePosixPath("/m"))
    began = time.process_time()
    assert build_reason(log, 2, found, NEW) is not None
    assert time.process_time() - began < 2
