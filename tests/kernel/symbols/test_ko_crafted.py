"""Crafted .ko files, each with one lie in it: what the issue's case and its relatives do to the readers."""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from kmlab.kernel.crash.source_lines import located, symbols_of
from kmlab.kernel.crash.stack_trace import Frame
from kmlab.kernel.module.modinfo import parse_modinfo
from kmlab.kernel.signing.signature import MAGIC, PKCS7, TRAILER, read_signature, strip_signature
from kmlab.kernel.symbols import dwarf, elf
from kmlab.kernel.symbols.elf import MalformedModule, ObjectFile, Section, read_object
from kmlab.kernel.symbols.symbolizer import ModuleSymbols
from kmlab.report import verdict_lines
from tests.kernel.symbols.test_ko_fuzz import crash_of
from tests.places import TEST_DATA

KO = TEST_DATA / "ko"
FRAME = Frame("outer", 0x24, 0x40, "frames", reliable=True, exact=False)
ROOT = PurePosixPath("/module/frames")


def frames_ko(name: str = "frames.ko") -> bytearray:
    return bytearray((KO / name).read_bytes())


def section_of(image: bytes | bytearray, name: str) -> Section:
    found = read_object(bytes(image), "frames.ko").find(name)
    assert found is not None
    return found


def line_range_zero(image: bytearray) -> None:
    """The issue's own: 23-debug-line."""
    section, at = section_of(image, ".debug_line"), 0
    while at + 20 < section.size:
        (length,) = struct.unpack_from("<I", image, section.offset + at)
        # Behind version, sizes and header_length: min_inst, max_ops, default_is_stmt, line_base, line_range.
        image[section.offset + at + 16] = 0
        at += 4 + length


def number_without_end(image: bytearray) -> None:
    section = section_of(image, ".debug_info")
    image[section.offset + 12 : section.offset + section.size] = b"\x80" * (section.size - 12)


def abbreviations_without_end(image: bytearray) -> None:
    section = section_of(image, ".debug_abbrev")
    image[section.offset : section.offset + section.size] = b"\x01" * section.size


def table_of_nothing(image: bytearray) -> None:
    """2^62 files, each without a field."""
    section = section_of(image, ".debug_line")
    program = struct.pack("<IHBBIBBBbBB", 0x100, 5, 8, 0, 0x40, 1, 1, 1, -5, 14, 1)
    program += b"\x00\x00" + b"\x00" + b"\xff" * 8 + b"\x3f"
    image[section.offset : section.offset + len(program)] = program


def siblings_in_a_circle(image: bytearray) -> None:
    """Every unit of four bytes that looks like a reference leads back to the first function."""
    section = section_of(image, ".debug_info")
    for at in range(section.offset + 40, section.offset + section.size - 4):
        (value,) = struct.unpack_from("<I", image, at)
        if 40 < value < section.size:
            struct.pack_into("<I", image, at, 0x2A)


def symbol_that_is_not_there(image: bytearray) -> None:
    section = section_of(image, ".rela.text")
    for at in range(section.offset, section.offset + section.size, 24):
        struct.pack_into("<I", image, at + 12, 0xFFFFFF)


def relocations_far_behind(image: bytearray) -> None:
    for name in (".rela.text", ".rela.debug_info", ".rela.debug_line"):
        section = section_of(image, name)
        for at in range(section.offset, section.offset + section.size, 24):
            struct.pack_into("<Q", image, at, 1 << 63)


def functions_at_no_address(image: bytearray) -> None:
    """Every symbol is a function at SHN_ABS, far behind all."""
    section = section_of(image, ".symtab")
    for at in range(section.offset, section.offset + section.size, 24):
        struct.pack_into("<BBHQQ", image, at + 4, 2, 0, 0xFFF1, (1 << 64) - 1, (1 << 64) - 1)


CRAFTED: dict[str, Callable[[bytearray], None]] = {
    f.__name__: f
    for f in (
        line_range_zero,
        number_without_end,
        abbreviations_without_end,
        table_of_nothing,
        siblings_in_a_circle,
        symbol_that_is_not_there,
        relocations_far_behind,
        functions_at_no_address,
    )
}


@pytest.mark.parametrize("how", CRAFTED)
def test_a_crash_in_a_module_that_lies_is_told_all_the_same(how: str) -> None:
    image = frames_ko()
    CRAFTED[how](image)
    entry = Frame("do_one_initcall", 1, 2, None, reliable=True, exact=False)
    for frames in ((FRAME,), (FRAME._replace(module=None, function="_printk"), entry)):
        found = located(crash_of(frames), {"frames.ko": bytes(image)}, ROOT)
        assert found.title == "BUG in outer"


@pytest.mark.parametrize("how", ["line_range_zero", "number_without_end", "table_of_nothing"])
def test_why_there_are_no_lines_is_known_and_the_other_module_has_its_own(how: str) -> None:
    image = frames_ko()
    CRAFTED[how](image)
    symbols = symbols_of({"frames.ko": bytes(image), "other.ko": bytes(frames_ko())}, ROOT)
    found = located(crash_of((FRAME, FRAME._replace(module="other"))), symbols, ROOT)
    assert [frame.file for frame in found.frames] == [None, "main.c", "main.c", "main.c"]
    problem = symbols["frames.ko"].problem
    assert problem is not None and problem.startswith("frames.ko: has debug information that cannot be read: ")
    assert symbols["other.ko"].problem is None


def test_what_is_broken_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    image = frames_ko()
    line_range_zero(image)
    symbols = ModuleSymbols(bytes(image), "frames.ko", ROOT)
    symbols.locate("outer", 0x24, 0x40, exact=False)
    monkeypatch.setattr(dwarf.DebugInfo, "_frames_at", None)
    assert symbols.locate("outer", 0x14, 0x40, exact=True)[0].line is None


def test_dwarf_may_only_be_read_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dwarf, "_MOST_READS", 1000)
    symbols = ModuleSymbols(bytes(frames_ko()), "frames.ko", ROOT)
    assert symbols.locate("outer", 0x24, 0x40, exact=False)[0].line is None
    assert symbols.problem == "frames.ko: has debug information that cannot be read: it has no end"


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_a_section_that_claims_to_become_vast_is_refused() -> None:
    image = frames_ko("frames-compressed.ko")
    section = section_of(image, ".debug_info")
    struct.pack_into("<Q", image, section.offset + 8, 1 << 50)
    with pytest.raises(MalformedModule, match="compressed sections of more than 512 MiB"):
        parse_modinfo(bytes(image), "frames.ko")


def test_a_compressed_section_of_no_bytes_is_not_unpacked_without_a_limit() -> None:
    bomb = struct.pack("<IIQQ", 1, 0, 0, 1) + zlib.compress(bytes(1 << 20))
    assert elf._decompressed(bomb, "m.ko") == b""


def test_sections_that_lie_over_one_another_are_refused() -> None:
    image = frames_ko()
    for section in read_object(bytes(image), "frames.ko").sections[1:]:
        struct.pack_into("<QQ", image, section.header_offset + 24, 0, len(image))
    with pytest.raises(MalformedModule, match=r"^frames\.ko: "):
        parse_modinfo(bytes(image), "frames.ko")


def test_names_without_an_end_are_cut() -> None:
    image = frames_ko()
    section = section_of(image, ".strtab")
    image[section.offset : section.offset + section.size] = b"a" * section.size
    assert {len(s.name) for s in read_object(bytes(image), "frames.ko").symbols} <= set(range(4097))


def test_too_many_symbols_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "_MOST_SYMBOLS", 10)
    with pytest.raises(MalformedModule, match="more than 10 symbols"):
        parse_modinfo(bytes(frames_ko()), "frames.ko")


def test_a_reserved_number_is_no_section() -> None:
    known = read_object(bytes(frames_ko()), "frames.ko")
    assert [known.section(number) for number in (0, -1, 0xFFF1, len(known.sections))] == [None] * 4


def _jumps() -> ObjectFile:
    """A module whose every function jumps to every other one."""
    image = frames_ko()
    text = section_of(image, ".text")
    symbols = section_of(image, ".symtab")
    image[text.offset : text.offset + text.size] = b"\xeb\x10" * (text.size // 2)
    for number, at in enumerate(range(symbols.offset, symbols.offset + symbols.size, 24)):
        place = 2 * number % text.size
        struct.pack_into("<BBHQQ", image, at + 4, 2, 0, text.number, place, text.size)
    return read_object(bytes(image), "frames.ko")


def test_functions_that_all_jump_to_one_another_are_followed_once_each() -> None:
    known = ModuleSymbols(_jumps().image, "frames.ko", ROOT)
    assert known.lost_callback("nowhere") == []
    assert known.lost_frames("outer", 5, None, "nowhere") == []
    assert known.lost_entry("init_module", "nowhere") == []


def test_a_file_of_signatures_is_stripped_in_one_go() -> None:
    image = bytes(frames_ko("tiny_loop.ko"))
    one = b"x" + TRAILER.pack(0, 0, PKCS7, 0, 0, bytes(3), 1) + MAGIC
    assert strip_signature(image + one * 20_000) == image


def test_a_signature_of_a_mebibyte_is_not_taken_apart() -> None:
    image = bytes(frames_ko("tiny_loop.ko"))
    size = 1 << 20
    signature = read_signature(image + bytes(size) + TRAILER.pack(0, 0, PKCS7, 0, 0, bytes(3), size) + MAGIC)
    assert signature is not None and "a length that no signature has" in (signature.problem or "")


@pytest.mark.parametrize("name", ["pipe", "loop", "../outside.c", "nul\0.c", "absent.c", "folder", "zero"])
def test_a_source_file_that_only_the_dwarf_names_is_shown_if_it_is_one(tmp_path: Path, name: str) -> None:
    source = tmp_path / "module"
    (source / "folder").mkdir(parents=True)
    (tmp_path / "outside.c").write_text("secret\n")
    os.mkfifo(source / "pipe")
    (source / "loop").symlink_to("loop")
    (source / "zero").symlink_to("/dev/zero")
    crash = dataclasses.replace(crash_of(()), file=name, line=1)
    assert list(verdict_lines.crash_lines(crash, source, 12)) == []
