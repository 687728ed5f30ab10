"""What a module left allocated is found in the kernel's own lists, and nothing else is taken for it."""

from __future__ import annotations

import pytest

from kmlab.kernel.crash.parser.scanner import find_crashes
from kmlab.kernel.detectors.detectors import DETECTORS, arm_line, disarm_line, find_detectors
from kmlab.kernel.detectors.leaks import (
    CodeRange,
    code_ranges,
    format_reports,
    new_leaks,
    parse_allocations,
    parse_kmemleak,
    parse_slab_traces,
    parse_vmalloc_areas,
    split_reports,
)
from kmlab.kernel.log.records import parse_log
from kmlab.kernel.symbols.elf import read_object
from kmlab.kernel.symbols.symbolizer import ModuleSymbols
from tests.places import TEST_DATA

RANGES = [CodeRange("resizer", 0xFFFFFFFFA0001000, 0xFFFFFFFFA0001200)]
SLABS = """\
/sys/kernel/debug/slab/kmalloc-64/alloc_traces:      2 0xffffffffa0001013 age=3/4/5 pid=77 cpus=0
/sys/kernel/debug/slab/kmalloc-64/alloc_traces-        __kmalloc_node_track_caller+0x1b/0x40
/sys/kernel/debug/slab/kmalloc-64/alloc_traces-        0xffffffffa0001013
/sys/kernel/debug/slab/kmalloc-64/alloc_traces-        do_one_initcall+0x11/0x22
--
/sys/kernel/debug/slab/kmalloc-cg-1k/alloc_traces:      1 0xffffffffa0009013 age=3 pid=1 cpus=0
/sys/kernel/debug/slab/kmalloc-cg-1k/alloc_traces-        0xffffffffa0009013
"""
VMALLOC = """\
0xffffc90000005000-0xffffc90000008000   12288 0xffffffffa0001100 pages=2 vmalloc N0=2
0xffffc90000008000-0xffffc9000000b000   12288 0xffffffffa0101100 pages=2 vmalloc N0=2
"""
OWN = """\
unreferenced object 0xffff888100a2d400 (size 128):
  comm "insmod", pid 421, jiffies 4294912345
  backtrace:
    [<ffffffff813a1234>] kmalloc_trace+0x24/0x90
    [<ffffffffa0001045>] 0xffffffffa0001045
    [<ffffffff81000e5f>] do_one_initcall+0x5f/0x2e0
"""
FORMATTED = OWN.replace(
    "    [<ffffffffa0001045>]",
    "    [<ffffffff813a1300>] __kmalloc_node_track_caller+0x44/0xd0\n"
    "    [<ffffffff8180aaaa>] kvasprintf+0x5a/0xb0\n"
    "    [<ffffffff8180abcd>] kasprintf+0x4d/0x70\n    [<ffffffffa0001045>]",
)
FOR_IT = OWN.replace(
    "    [<ffffffffa0001045>]", "    [<ffffffff8140aaaa>] __proc_create+0x9a/0x2b0\n    [<ffffffffa0001045>]"
)
ELSEWHERE = OWN.replace("a0001045", "a0401045")


def test_the_range_of_a_module_is_that_of_its_code() -> None:
    sections = {"m": {".text": 0x1000, ".init.text": 0x9000, ".data": 0x2000}}
    sizes = {"m": {".text": 0x80, ".init.text": 0x20, ".data": 0x40}}
    assert code_ranges(sections, sizes) == [CodeRange("m", 0x1000, 0x1080), CodeRange("m", 0x9000, 0x9020)]


def test_objects_of_slab_caches_that_the_module_allocated_are_found_with_cache_size_and_stack() -> None:
    (leak,) = parse_slab_traces(SLABS, RANGES)
    assert (leak.what, leak.objects, leak.size, leak.pid) == ("kmalloc-64", 2, 64, 77)
    assert leak.address == 0xFFFFFFFFA0001013
    assert leak.stack == ("do_one_initcall+0x11/0x22",)


def test_areas_of_vmalloc_that_the_module_allocated_are_found() -> None:
    (leak,) = parse_vmalloc_areas(VMALLOC, RANGES)
    assert (leak.what, leak.size, leak.address) == ("vmalloc", 12288, 0xFFFFFFFFA0001100)


def test_what_an_earlier_module_left_at_the_same_place_is_not_this_one_s() -> None:
    before = parse_slab_traces(SLABS, RANGES)
    assert new_leaks(before, before) == []
    more = [leak._replace(objects=leak.objects + 3) for leak in before]
    assert [leak.objects for leak in new_leaks(before, more)] == [3]


def test_a_report_is_read_by_the_judge_as_a_leak() -> None:
    reports = format_reports([*parse_slab_traces(SLABS, RANGES), *parse_vmalloc_areas(VMALLOC, RANGES)])
    crashes = [crash for report in reports for crash in find_crashes(parse_log(report.encode()).records)]
    assert [(crash.kind, crash.class_) for crash in crashes] == [("warning", "memory-leak")] * 2
    assert {crash.frames[0].function for crash in crashes} == {"0xffffffffa0001013", "0xffffffffa0001100"}


@pytest.mark.parametrize(("report", "own"), [(OWN, True), (FORMATTED, True), (FOR_IT, False)])
def test_memory_that_the_module_asked_for_is_told_from_what_the_kernel_allocated_for_it(report: str, own: bool) -> None:
    found = parse_kmemleak(report, RANGES)
    assert len(found) == 1
    assert split_reports(found, RANGES) == ((found, []) if own else ([], found))


def test_only_reports_with_a_frame_of_the_module_count() -> None:
    assert parse_kmemleak(ELSEWHERE, RANGES) == []
    assert len(parse_kmemleak(ELSEWHERE + OWN + FORMATTED, RANGES)) == 2
    named = ELSEWHERE.replace("0xffffffffa0401045", "resize+0x13/0x35 [resizer]")
    assert len(parse_kmemleak(named, RANGES)) == 1


def test_what_the_debug_kernel_lists_has_the_names_of_the_module_s_functions_and_not_what_gcov_keeps() -> None:
    image = (TEST_DATA / "ko" / "frames.ko").read_bytes()
    symbols = {"frames": ModuleSymbols(image, "frames")}
    elf = read_object(image, "frames")
    text = elf.find(".text")
    assert text is not None and elf.code_at("text", text.size - 1) == (text, text.size - 1)
    assert elf.code_at("text", 1 << 30) is None
    listed = OWN.replace("0xffffffffa0001045", "frames:text+0x5")
    of_gcov = listed.replace("] frames:text", "] __gcov_init+0x1/0x2\n    [<ffffffffa0001045>] frames:text")
    (report,) = parse_allocations(listed + of_gcov, symbols)
    place = symbols["frames"].symbol_in_code("text", 5)
    assert place is not None
    assert f"{place.function}+0x{place.offset:x}/0x{place.size:x} [frames]" in report
    (unnamed,) = parse_allocations(listed.replace("+0x5", "+0xfffffff"), symbols)
    assert "unknown+0xfffffff/0x0 [frames]" in unnamed


@pytest.mark.parametrize("text", ["", "garbage\n", "unreferenced object \n", SLABS[:90], "0x-0x 1 0xffffffffa0001100"])
def test_any_text_is_read(text: str) -> None:
    assert parse_slab_traces(text, RANGES) in ([], parse_slab_traces(text, RANGES))
    assert parse_vmalloc_areas(text, RANGES) == []
    assert parse_kmemleak(text, RANGES) == []


def test_the_detectors_of_a_guest_are_those_whose_signs_it_has() -> None:
    assert find_detectors(None) == () == find_detectors(frozenset({"/sys/kernel/debug/x", "char 5"}))
    assert find_detectors({detector.sign for detector in DETECTORS}) == DETECTORS
    (kfence,) = find_detectors({"/sys/module/kfence"})
    assert kfence.name == "kfence"
    assert "sample_interval 1" in arm_line([kfence])
    assert disarm_line([kfence]).count("sample_interval") == 1
    assert arm_line(find_detectors({"/sys/kernel/debug/kmemleak_by"})) == ""
