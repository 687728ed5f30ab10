"""Options of a kernel that kmlab builds: what was asked for is there afterwards, or named."""

from __future__ import annotations

import pytest

from kmlab.config.kernel_flavours import common_fragment, flavour_names, load_flavour, modules_fragment
from kmlab.kernel.build import build_tree
from kmlab.kernel.build.config_fragment import change_auto_conf, find_dropped, format_fragment, merge_fragments

KASAN = """\
# Memory errors.
CONFIG_KASAN=y
# CONFIG_UBSAN_TRAP is not set
CONFIG_LOCKDEP_BITS=17
CONFIG_LOCALVERSION="-a b"
"""


def test_a_fragment_is_read_and_written_and_a_later_one_wins() -> None:
    merged = merge_fragments([KASAN, "CONFIG_LOCKDEP_BITS=15\nCONFIG_UBSAN_TRAP=y\n"])
    assert merged == {"KASAN": "y", "UBSAN_TRAP": "y", "LOCKDEP_BITS": "15", "LOCALVERSION": '"-a b"'}
    assert merge_fragments([format_fragment(merged)]) == merged


def test_each_option_that_make_dropped_or_changed_is_named() -> None:
    options = merge_fragments([KASAN])
    assert find_dropped(options, KASAN) == []
    written = 'CONFIG_UBSAN_TRAP=y\nCONFIG_LOCKDEP_BITS=18\nCONFIG_LOCALVERSION="-a b"\n'
    assert find_dropped(options, written) == ["CONFIG_KASAN=y", "CONFIG_LOCKDEP_BITS=17", "CONFIG_UBSAN_TRAP=n"]


def test_auto_conf_has_the_options_of_modules_and_nothing_that_is_off() -> None:
    auto = "CONFIG_DEBUG_INFO_NONE=y\nCONFIG_KASAN=y\n"
    assert change_auto_conf(auto, merge_fragments([modules_fragment()])).splitlines() == [
        "CONFIG_KASAN=y",
        "CONFIG_DEBUG_INFO=y",
        "CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y",
        "CONFIG_UBSAN_SANITIZE_ALL=y",
    ]


@pytest.mark.parametrize("name", flavour_names())
def test_a_guest_can_boot_the_kernel_of_each_flavour(name: str) -> None:
    flavour = load_flavour(name)
    assert flavour.about and flavour.about[0].isupper() and flavour.about.endswith(".")
    options = merge_fragments([common_fragment("x86_64"), flavour.fragment])
    on = {key: value for key, value in options.items() if value != "n"}
    # Options that `allnoconfig` cannot switch off, or that others select.
    implied = {f"CONFIG_{name}" for name in ("SIGNALFD", "INOTIFY_USER", "SYSCTL")}
    assert set(build_tree.lacking(on, "x86")) <= implied
