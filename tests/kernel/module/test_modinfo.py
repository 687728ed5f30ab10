"""kmlab.kernel.modinfo: what a .ko says of itself, load order, parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmlab.common.errors import ConfigError
from kmlab.kernel.module.modinfo import (
    ModInfo,
    ParamValue,
    Softdep,
    format_params,
    is_compressed,
    is_signed,
    load_order,
    parse_modinfo,
    parse_param,
)
from tests.places import TEST_DATA

KO = TEST_DATA / "ko"
FRAMES = (KO / "frames.ko").read_bytes()


def test_a_real_module_is_read() -> None:
    info = parse_modinfo(FRAMES, "frames.ko")
    assert (info.name, info.machine, info.license, info.version) == ("frames", "x86_64", "GPL", "1.2")
    assert info.description == "Shapes of frames that a symbolizer must tell apart"
    assert info.vermagic is not None and info.vermagic.endswith("SMP preempt mod_unload modversions ")
    assert info.release is not None and info.release.startswith("6.1.0-")
    assert info.srcversion and info.retpoline and not info.intree and info.gpl_compatible
    assert info.aliases == ("frames-alias",)
    assert info.softdeps == (Softdep(("crc32c_generic",), ("loop",)),)
    assert info.has_exit and info.has_debug and not info.signed and info.depends == ()


def test_parameters_have_type_and_description() -> None:
    params = {p.name: (p.type, p.description) for p in parse_modinfo(FRAMES).params}
    assert params == {
        "my_int": ("int", "How deep to go"),
        "my_array": ("array of int", ""),
        "label": ("charp", "A word of yours: any"),
    }


def test_a_stripped_module_says_so() -> None:
    assert not parse_modinfo((KO / "frames-stripped.ko").read_bytes()).has_debug


def test_an_arm64_module_is_read() -> None:
    info = parse_modinfo((KO / "arm64.ko").read_bytes())
    assert (info.name, info.machine, info.release, info.has_exit) == (
        "sample",
        "aarch64",
        "6.12.0-arm64",
        False,
    )


def test_a_signature_is_seen() -> None:
    signed = FRAMES + b"\x30\x00" + bytes(12) + b"~Module signature appended~\n"
    assert is_signed(signed) and parse_modinfo(signed).signed
    assert not is_signed(FRAMES)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (b"", "no ELF"),
        (b"#!/bin/sh\n", "no ELF"),
        (b"\x7fELF", "cut short"),
        (FRAMES[:5000], "cut short"),
        (FRAMES[:-100], "cut short"),
        (b"\xfd7zXZ\x00" + bytes(50), "compressed"),
        (b"\x28\xb5\x2f\xfd" + bytes(50), "compressed"),
        (b"\x1f\x8b" + bytes(50), "compressed"),
        (FRAMES[:4] + b"\x01" + FRAMES[5:], "64-bit"),
        (FRAMES[:18] + b"\xf3\x00" + FRAMES[20:], "another machine"),
        (FRAMES[:16] + b"\x02\x00" + FRAMES[18:], "linked"),
    ],
)
def test_what_is_no_module_is_a_clear_error(image: bytes, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as error:
        parse_modinfo(image, "x.ko")
    assert error.value.message.startswith("x.ko: ") and error.value.hint


def test_compression_is_seen() -> None:
    assert is_compressed(b"\x1f\x8b\x08") and not is_compressed(FRAMES)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 400), byte=st.integers(0, 255), tail=st.integers(0, 4000))
def test_damaged_bytes_are_read_or_refused(at: int, byte: int, tail: int) -> None:
    small = (KO / "arm64.ko").read_bytes()
    # The headers lie at both ends of the file.
    for position in (at % 64, len(small) - 1 - tail % 2000):
        damaged = bytearray(small)
        damaged[position] = byte
        try:
            assert parse_modinfo(bytes(damaged)).name.isprintable()
        except ConfigError as error:
            assert error.message.isprintable()


def module(name: str, *depends: str) -> ModInfo:
    return replace(parse_modinfo(FRAMES), name=name, depends=depends)


def test_modules_load_after_what_they_depend_on() -> None:
    order = load_order([module("top", "middle"), module("middle", "base"), module("base")])
    assert [m.name for m in order.modules] == ["base", "middle", "top"]


def test_modules_without_dependencies_keep_their_order() -> None:
    assert [m.name for m in load_order([module("b"), module("a"), module("c")]).modules] == ["b", "a", "c"]


def test_modules_from_outside_are_returned_apart() -> None:
    order = load_order([module("mine", "usbcore", "base"), module("base", "usbcore")])
    assert order.outside == ("usbcore",)
    assert [m.name for m in order.modules] == ["base", "mine"]


def test_a_diamond_is_no_cycle() -> None:
    order = load_order([module("d", "b", "c"), module("b", "a"), module("c", "a"), module("a")])
    assert [m.name for m in order.modules] == ["a", "b", "c", "d"]


def test_a_cycle_is_named() -> None:
    with pytest.raises(ConfigError, match="a -> b -> a"):
        load_order([module("a", "b"), module("b", "a")])


def test_two_modules_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two modules are called 'a'"):
        load_order([module("a"), module("a")])


def test_parameters_are_written_as_the_kernel_reads_them() -> None:
    given_params: dict[str, ParamValue] = {
        "my_int_array": [4, 5, 6, 7],
        "my_str": "HelloLarva",
        "on": True,
        "off": False,
        "n": -3,
    }
    assert format_params(given_params) == [
        "my_int_array=4,5,6,7",
        "my_str=HelloLarva",
        "on=Y",
        "off=N",
        "n=-3",
    ]


def test_a_value_with_blanks_is_quoted_for_the_kernel() -> None:
    assert format_params({"s": "a b", "words": ["a b", "c"]}) == ['s="a b"', 'words="a b,c"']


def test_a_value_beyond_ascii_is_quoted_because_the_kernel_takes_some_bytes_for_blanks() -> None:
    assert format_params({"s": "voilà"}) == ['s="voilà"']


@pytest.mark.parametrize("value", ['say "x"', "two\nlines", "nul\0", ["a,b", "c"], "cr\r"])
def test_what_the_kernel_cannot_be_told_is_refused(value: str | list[str]) -> None:
    with pytest.raises(ConfigError, match="parameter 'p'"):
        format_params({"p": value})


@pytest.mark.parametrize("name", ["", "a b", "x=y", "-v", "a;b"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        format_params({name: "1"})


def test_name_and_value_are_parsed() -> None:
    assert parse_param("a=1") == ("a", "1")
    assert parse_param("s=x=y z") == ("s", "x=y z")
    assert parse_param('s="a b"') == ("s", "a b")
    assert parse_param("empty=") == ("empty", "")


@pytest.mark.parametrize("text", ["novalue", "=1", "a b=1", 's=a"b'])
def test_a_bad_pair_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_param(text)
