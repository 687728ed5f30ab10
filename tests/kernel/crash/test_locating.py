"""Whose line it is: functions that were inlined, that come from a header, or that a jump left for good."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from kmlab.kernel.crash.parser.scanner import find_crashes
from kmlab.kernel.crash.source_lines import located
from kmlab.kernel.log.records import parse_log
from kmlab.kernel.symbols.elf import read_object
from kmlab.kernel.symbols.symbolizer import ModuleSymbols
from tests.kernel.crash.test_oops import CORPUS, judge, read_sample
from tests.places import TEST_DATA

KO = TEST_DATA / "ko"
LOGS = {path.stem: path for path in CORPUS}
(CHECKS,) = read_sample(LOGS["guest-6.1-checks-warn_plain"]).images.values()


def named(stem: str) -> str:
    (crash,) = judge(read_sample(LOGS[stem]))
    assert crash.title.endswith(f" in {crash.function}")
    return f"{crash.function} at {crash.file}"


def test_the_function_that_an_inlined_line_stands_in_is_to_blame() -> None:
    sample = read_sample(LOGS["guest-6.1-faults-inlined"])
    (bare,) = judge(sample._replace(images={}))
    assert bare.function == "inlined", "the kernel's own word for it"
    assert named("guest-6.1-faults-inlined") == "innermost at faults.c"


def test_a_header_s_function_is_not_to_blame_where_the_compiler_made_one_of_it() -> None:
    sample = read_sample(LOGS["guest-6.1-checks-list_gone"])
    (bare,) = judge(sample._replace(images={}))
    assert bare.function == "__list_del_entry"
    assert named("guest-6.1-checks-list_gone") == "list_gone at checks.c"


def test_an_include_folder_of_the_module_s_own_is_its_own() -> None:
    image = (KO / "ownheader.ko").read_bytes()
    log = b"BUG: kernel NULL pointer dereference, address: 0\nRIP: 0010:uses_own_header+0x0/0x10 [ownheader]\n"
    (bare,) = find_crashes(parse_log(log).records, own_modules=frozenset({"ownheader"}))
    found = located(bare, {"ownheader.ko": image}, PurePosixPath("/var/lib/kmlab/modules/ownheader"))
    assert (found.function, found.file, found.line) == ("poke", "include/own.h", 4)


@pytest.mark.parametrize("name", ["ref_underflow", "ref_after_zero", "free_twice"])
def test_a_function_that_ended_in_a_jump_is_found_though_no_frame_names_it(name: str) -> None:
    sample = read_sample(LOGS[f"guest-6.1-checks-{name}"])
    (bare,) = judge(sample._replace(images={}))
    assert name not in [frame.name for frame in bare.frames]
    assert named(f"guest-6.1-checks-{name}") == f"{name} at checks.c"


def test_where_no_frame_is_missing_none_is_added() -> None:
    symbols = ModuleSymbols(CHECKS)
    sample = read_sample(LOGS["guest-6.1-checks-warn_plain"])
    (bare,) = judge(sample._replace(images={}))
    caller = next(f for f in bare.frames if f.name == "checks_init")
    assert symbols.lost_frames(caller.function, caller.offset or 0, caller.size, "warn_plain") == []
    assert symbols.lost_frames(caller.function, 3, caller.size, "printk") == []
    assert symbols.lost_frames("absent", 30, None, "printk") == []


def test_a_module_that_is_another_build_leaves_the_finding_as_it_was() -> None:
    sample = read_sample(LOGS["guest-6.1-faults-inlined"])
    (bare,) = judge(sample._replace(images={}))
    found = located(bare, {"other.ko": CHECKS}, PurePosixPath("/src"))
    assert found == bare
    assert find_crashes([]) == []


def test_a_callback_that_ended_in_a_jump_is_the_only_one_that_can_have_jumped_there() -> None:
    (image,) = read_sample(LOGS["guest-6.1-leftovers-timer_left"]).images.values()
    symbols = ModuleSymbols(image)
    assert [(p.function, p.file) for p in symbols.lost_callback("mod_timer")] == [("late_timer", "leftovers.c")]
    assert symbols.lost_callback("queue_delayed_work_on")[-1].function == "late_work"
    assert symbols.lost_callback("printk") == []


def test_what_was_called_after_its_module_was_gone_is_told_by_its_place_on_the_page() -> None:
    sample = read_sample(LOGS["guest-6.1-leftovers-kthread_left"])
    (image,) = sample.images.values()
    (begin,) = [symbol.value for symbol in read_object(image, "leftovers").symbols if symbol.name == "late_timer"]
    called = re.sub(rb"RIP: 0010:0xffffffffc0260[0-9a-f]{3}", b"RIP: 0010:0xffffffffc0777%03x" % begin, sample.data)
    (crash,) = judge(sample._replace(data=called, sections={}))
    assert (crash.function, crash.module, crash.file) == ("late_timer", "leftovers", "leftovers.c")
    assert crash.title == "BUG: unable to handle page fault after leftovers was unloaded, in late_timer"
    elsewhere = re.sub(
        rb"RIP: 0010:0xffffffffc0260[0-9a-f]{3}", b"RIP: 0010:0xffffffffc0777%03x" % (begin + 4), sample.data
    )
    (crash,) = judge(sample._replace(data=elsewhere, sections={}))
    assert crash.function is None, "where no function begins"
    linked = called.replace(b"Modules linked in: ", b"Modules linked in: leftovers(OE) ")
    (crash,) = judge(sample._replace(data=linked, sections={}))
    assert crash.file is None, "while it is loaded its frames have its name"
