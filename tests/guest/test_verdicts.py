"""Modules that go wrong in real guests: the outcome, the function, the line; and the memory that is left."""

from __future__ import annotations

from pathlib import Path

import drgn
import pytest

from kmlab.host.hypervisor import hypervisor
from tests.crashers import CRASHERS
from tests.guest.conftest import REPOSITORY, Lab

TELLING = (
    *("null_call", "smash", "breakpoint", "inlined", "init_section", "free_garbage", "no_execute"),
    *("ref_saturated", "list_twice", "write_beyond", "fortified", "warn_once"),
    *("timer", "hrtimer", "work", "exit", "param"),
    *("timer_left", "failed_init", "sysfs_twice"),
)
"""Of all crashers those that no other speaks for; tests/data/oops has the logs of all, judged without a guest."""


@pytest.fixture(scope="module")
def crashers(base: Path, environment: dict[str, str]) -> Lab:
    return Lab(CRASHERS.file, environment)


@pytest.mark.parametrize("name", TELLING)
def test_a_crasher_is_judged_by_its_function_and_its_line(crashers: Lab, name: str) -> None:
    CRASHERS.check(crashers("run", name, "--json", code=None).result)


def test_panics_in_a_row_each_leave_nothing_behind(lab: Lab) -> None:
    lab.write(lab.file.read_text() + "vmcore: never\n")
    for _ in range(3):
        result = lab("run", str(REPOSITORY / "examples/panic"), "--json", code=1).result
        found = [(crash["function"], crash["file"]) for crash in result["crashes"]]
        assert (result["outcome"], found) == ("panic", [("give_up", "panic.c")])
        assert (result["taint"]["before"], "panic" in result["modules"]["before"]) == ([], False)
        assert [pid for folder in lab.state.glob("labs/t-*") for pid in hypervisor.processes(folder)] == []
    assert lab("run", str(REPOSITORY / "examples/hello"), "--json").result["outcome"] == "pass"


def test_the_kernel_s_log_is_read_out_of_the_memory_of_a_guest_that_panicked(lab: Lab) -> None:
    result = lab("run", str(REPOSITORY / "examples/panic"), "-p", "reason=larvae", "--json", code=1).result
    folder = Path(result["artifacts"]["directory"])
    texts = kernel_log(folder / result["artifacts"]["vmcore"])
    assert any("Kernel panic - not syncing: larvae" in text for text in texts)
    assert texts[0].startswith("Linux version ")
    assert not list(folder.glob("*.flat"))


def kernel_log(vmcore: Path) -> list[str]:
    """The ring buffer of kernel/printk/printk_ringbuffer.c, by VMCOREINFO alone: no debug information of the kernel."""
    program = drgn.Program()
    program.set_core_dump(str(vmcore))
    with pytest.raises(drgn.MissingDebugInfoError):
        program.load_default_debug_info()
    notes = dict(line.split("=", 1) for line in program["VMCOREINFO"].string_().decode().splitlines())

    def offset(field: str) -> int:
        return int(notes[f"OFFSET({field})"])

    ring = program.read_u64(int(notes["SYMBOL(prb)"], 16))
    descriptors, data = ring + offset("printk_ringbuffer.desc_ring"), ring + offset("printk_ringbuffer.text_data_ring")
    count = 1 << program.read_u32(descriptors + offset("prb_desc_ring.count_bits"))
    size = 1 << program.read_u32(data + offset("prb_data_ring.size_bits"))
    text_at = program.read_u64(data + offset("prb_data_ring.data"))
    entries = program.read_u64(descriptors + offset("prb_desc_ring.descs"))
    infos = program.read_u64(descriptors + offset("prb_desc_ring.infos"))
    first = program.read_u64(descriptors + offset("prb_desc_ring.tail_id"))
    last = program.read_u64(descriptors + offset("prb_desc_ring.head_id"))
    texts = []
    for number in range(first, last + 1 if last >= first else last + (1 << 62)):
        entry = entries + number % count * int(notes["SIZE(prb_desc)"])
        place = entry + offset("prb_desc.text_blk_lpos")
        begin, end = program.read_u64(place), program.read_u64(place + offset("prb_data_blk_lpos.next"))
        if begin & 1:
            continue
        begin = 0 if begin // size != end // size and end % size else begin % size
        length = program.read_u16(
            infos + number % count * int(notes["SIZE(printk_info)"]) + offset("printk_info.text_len")
        )
        if program.read_u64(text_at + begin) == number:
            texts.append(program.read(text_at + begin + 8, length).decode("utf-8", "replace"))
    return texts
