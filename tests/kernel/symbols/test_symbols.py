"""kmlab.kernel.symbols: from a frame to file and line, on real modules of gcc 12."""

from __future__ import annotations

import time
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmlab.common.errors import ConfigError
from kmlab.kernel.symbols.symbolizer import (
    Kallsyms,
    Location,
    ModuleSymbols,
    SymbolAt,
    excerpt,
    plain_name,
    relative_path,
)
from tests.places import TEST_DATA

KO = TEST_DATA / "ko"
ROOT = PurePosixPath("/module/frames")


def symbols_of(name: str, root: PurePosixPath | None = ROOT) -> ModuleSymbols:
    return ModuleSymbols((KO / name).read_bytes(), name, root)


BUILDS = ["frames.ko", "frames-dwarf4.ko", "frames-compressed.ko"]


def line_of(source: str, text: str, after: str = "") -> int:
    """The number of the first line with `text` behind the first with `after`."""
    lines = (KO / source).read_text().split("\n")
    begin = next(i for i, line in enumerate(lines) if after in line)
    return next(i for i, line in enumerate(lines[begin:], begin + 1) if text in line)


def brief(found: list[Location]) -> list[tuple[str, str | None, int | None, bool]]:
    return [(one.function, one.file, one.line, one.inlined) for one in found]


@pytest.mark.parametrize("build", BUILDS)
def test_inlined_frames_are_expanded_innermost_first(build: str) -> None:
    assert brief(symbols_of(build).locate("outer", 0x24, 0x40, exact=False)) == [
        ("inner", "main.c", line_of("frames/main.c", "return helper(place);"), True),
        ("middle", "main.c", line_of("frames/main.c", "found += inner(place);"), True),
        ("outer", "main.c", line_of("frames/main.c", "int sum = middle(place);"), False),
    ]


@pytest.mark.parametrize("build", BUILDS)
def test_the_exact_pc_of_a_store_is_its_own_line(build: str) -> None:
    assert brief(symbols_of(build).locate("outer", 0x14, 0x40, exact=True))[0] == (
        "inner",
        "main.c",
        line_of("frames/main.c", "*place = 42;"),
        True,
    )


def test_a_return_address_is_looked_up_one_byte_before() -> None:
    symbols = symbols_of("frames.ko")
    after = symbols.locate("outer", 0x24, 0x40, exact=True)
    before = symbols.locate("outer", 0x24, 0x40, exact=False)
    assert after[0].function == "middle" and before[0].function == "inner"


def test_a_return_address_at_the_very_end_of_a_function_still_belongs_to_it() -> None:
    found = symbols_of("frames.ko").locate("frames_report", 0x26, 0x26, exact=False)
    assert found[-1].function == "frames_report" and found[-1].file == "main.c"


@pytest.mark.parametrize("build", BUILDS)
def test_functions_of_one_name_in_two_files_are_told_apart(build: str) -> None:
    symbols = symbols_of(build)
    assert symbols.locate("helper.isra.0", 5, 0x10, exact=True)[-1][:2] == ("helper", "main.c")
    assert symbols.locate("helper", 5, 0x30, exact=True)[-1][:2] == ("helper", "other.c")


@pytest.mark.parametrize("build", BUILDS)
def test_code_at_the_same_offset_of_several_sections_is_told_apart(build: str) -> None:
    symbols = symbols_of(build)
    found = {
        name: symbols.locate(name, 4, None, exact=True)[-1]
        for name in ("helper.isra.0", "frames_report", "frames_init", "frames_exit")
    }
    text = "frames/main.c"
    assert found["helper.isra.0"].line == line_of(text, "int helper(int *place)")
    assert found["frames_report"].line == line_of(text, "void frames_report(int sum)") + 1
    assert found["frames_init"].line == line_of(text, "frames_init(void)") + 1
    assert found["frames_exit"].line == line_of(text, "frames_exit(void)") + 1


def test_init_and_its_alias_are_the_same_place() -> None:
    symbols = symbols_of("frames.ko")
    named = symbols.locate("frames_init", 0x40, None, exact=True)
    assert named == symbols.locate("init_module", 0x40, None, exact=True)
    assert named[-1].function == "frames_init"


def test_a_cold_part_belongs_to_its_function() -> None:
    found = symbols_of("frames.ko").locate("outer.cold", 6, 0x1A, exact=True)
    assert brief(found) == [("outer", "main.c", line_of("frames/main.c", "frames_report(sum);"), False)]


@pytest.mark.parametrize("build", BUILDS)
def test_a_kernel_header_keeps_a_path_of_the_kernel(build: str) -> None:
    found = symbols_of(build).locate("other", 0x20, 0x1000, exact=False)
    assert found[0].function == "__list_add" and found[0].file == "include/linux/list.h" and found[0].inlined
    assert found[-1][:3] == ("other", "other.c", line_of("frames/other.c", "list_add(entry"))


def test_the_root_is_taken_from_the_dwarf_if_nobody_says() -> None:
    symbols = symbols_of("frames.ko", None)
    assert symbols.locate("helper", 5, 0x30, exact=True)[-1].file == "other.c"


def test_the_last_function_of_a_section_may_have_any_larger_size() -> None:
    symbols = symbols_of("frames.ko")
    assert symbols.knows("other", 0x52) and symbols.knows("other", 0xF80) and not symbols.knows("other", 0x10)


def test_the_kernel_s_size_up_to_the_next_symbol_is_known() -> None:
    symbols = symbols_of("frames.ko")
    assert symbols.knows("outer", 0x40)
    assert symbols.knows("outer", 0x3C)
    assert not symbols.knows("outer", 0x44)
    assert not symbols.knows("nobody", 1)


def test_an_unknown_function_has_no_location() -> None:
    assert symbols_of("frames.ko").locate("nobody", 0, 4, exact=True) == []


def test_an_offset_outside_of_the_function_has_no_location() -> None:
    assert symbols_of("frames.ko").locate("outer", 0x400, 0x40, exact=True) == []


def test_without_dwarf_the_name_stays() -> None:
    found = symbols_of("frames-stripped.ko").locate("helper.isra.0", 5, 0x10, exact=True)
    assert found == [Location("helper", None, None, None, False)]


def test_an_arm64_module_is_located_too() -> None:
    symbols = symbols_of("arm64.ko", PurePosixPath("/module/arm64"))
    assert symbols.locate("init_module", 0, None, exact=True)[-1][:2] == ("init_module", "sample.c")
    found = symbols.locate("outer", 8, None, exact=True)
    assert found[-1][:2] == ("outer", "sample.c")


def test_a_file_that_is_no_module_is_an_error_when_asked() -> None:
    symbols = ModuleSymbols(b"nothing", "x.ko")
    with pytest.raises(ConfigError, match=r"x\.ko"):
        symbols.locate("f", 0, None, exact=True)


def test_an_address_in_a_section_is_a_function() -> None:
    symbols = symbols_of("frames.ko")
    assert symbols.symbol_at(".text", 0x14) == SymbolAt("outer", 4, 0x40)
    assert symbols.symbol_at(".text.unlikely", 0x28) == SymbolAt("outer.cold", 2, 26)
    assert symbols.symbol_at(".init.text", 0) == SymbolAt("frames_init", 0, 129)
    assert symbols.symbol_at(".text", 0x10000) is None
    assert symbols.symbol_at(".nowhere", 0) is None


def test_an_address_of_the_running_kernel_is_found_by_the_sections_of_sysfs() -> None:
    symbols = symbols_of("frames.ko")
    sections = {".text": 0xFFFFFFFFC0401000, ".data": 0xFFFFFFFFC0403000, ".init.text": 0xFFFFFFFFC0501000}
    assert symbols.section_at(0xFFFFFFFFC0501010, sections) == (".init.text", 0x10)
    assert symbols.section_at(0xFFFFFFFFC0403000, sections) is None
    assert symbols.section_at(0x10, sections) is None


def test_a_small_module_takes_little_time() -> None:
    import elftools.elf.elffile  # noqa: F401

    image = (KO / "frames.ko").read_bytes()
    began = time.process_time()
    ModuleSymbols(image, source_root=ROOT).locate("outer", 0x24, 0x40, exact=False)
    assert time.process_time() - began < 0.15


@settings(max_examples=60, deadline=None)
@given(places=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=20))
def test_damaged_dwarf_is_read_or_refused(places: list[tuple[int, int]]) -> None:
    damaged = bytearray((KO / "arm64.ko").read_bytes())
    for at, byte in places:
        damaged[at % len(damaged)] = byte
    symbols = ModuleSymbols(bytes(damaged))
    try:
        found = [*symbols.locate("outer", 8, None, exact=True), *symbols.locate_in(".text", 4)]
    except ConfigError as error:
        assert error.message.isprintable()
    else:
        assert all(location.file is None or location.file.isprintable() for location in found)


KALLSYMS = """\
ffffffff81000000 T _stext
ffffffff81000000 T startup_64
ffffffff81000100 t helper
ffffffff81000180 T outer
0000000000000010 A fixed
ffffffffc0401000 t null_read\t[nullread]
ffffffffc0401040 t null_init\t[nullread]
"""


def test_kallsyms_resolves_the_kernel_s_and_a_module_s_addresses() -> None:
    kernel = Kallsyms(KALLSYMS)
    assert kernel.resolve(0xFFFFFFFF81000104) == SymbolAt("helper", 4, 0x80, None)
    assert kernel.resolve(0xFFFFFFFFC0401012) == SymbolAt("null_read", 0x12, 0x40, "nullread")
    assert kernel.resolve(0xFFFFFFFFC0401041) == SymbolAt("null_init", 1, None, "nullread")
    assert kernel.resolve(0x1000) is None


def test_kallsyms_finds_a_symbol_by_name() -> None:
    assert Kallsyms(KALLSYMS).find("outer") == [0xFFFFFFFF81000180]


def test_hidden_kallsyms_are_empty() -> None:
    kernel = Kallsyms("0000000000000000 T _stext\n0000000000000000 t x\nrubbish\nzz T y\n")
    assert len(kernel) == 0 and kernel.resolve(5) is None


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("f.isra.0", "f"),
        ("f.constprop.0.isra.0", "f"),
        ("f.part.0.cold", "f"),
        ("f.cold", "f"),
        ("f", "f"),
        ("f.llvm.1234567", "f"),
    ],
)
def test_what_compilers_append_is_taken_off(name: str, plain: str) -> None:
    assert plain_name(name) == plain


@pytest.mark.parametrize(
    ("path", "relative"),
    [
        ("/root/m/src/a.c", "src/a.c"),
        ("/root/m/./src/../b.h", "b.h"),
        ("/usr/src/linux-headers-6.1.0-56-common/include/linux/list.h", "include/linux/list.h"),
        ("/usr/src/linux-headers-6.1.0-56-common/arch/x86/include/asm/io.h", "arch/x86/include/asm/io.h"),
        ("./include/linux/list.h", "include/linux/list.h"),
        ("/root/m/include/own.h", "include/own.h"),
        ("/root/mother/x.c", "/root/mother/x.c"),
        ("a.c", "a.c"),
    ],
)
def test_paths_are_said_as_a_person_would(path: str, relative: str) -> None:
    assert relative_path(path, PurePosixPath("/root/m")) == relative


def test_an_excerpt_marks_its_line() -> None:
    assert [tuple(line) for line in excerpt("a\nb\nc\nd\ne\nf\n", 3, 1)] == [
        (2, "b", False),
        (3, "c", True),
        (4, "d", False),
    ]


def test_an_excerpt_stops_at_the_ends() -> None:
    assert [line.number for line in excerpt("a\nb\nc", 1)] == [1, 2, 3]
    assert [line.number for line in excerpt("a\nb\nc", 3)] == [1, 2, 3]
    assert excerpt("a\n", 2) == [] and excerpt("", 1) == [] and excerpt("a", 0) == []
