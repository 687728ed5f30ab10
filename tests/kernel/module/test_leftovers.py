"""What a module left behind is found, and what others make meanwhile is not blamed on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmlab.kernel.crash.crash import outcome_of
from kmlab.kernel.detectors.leaks import CodeRange
from kmlab.kernel.module.leftovers import can_leave, find_names, find_threads

BEFORE = frozenset({"/proc/cpuinfo", "/sys/dev/char/1:3", "character 1", "fs ext4", "/sys/kernel/debug/clk"})
RANGES = [CodeRange("larva", 0xFFFFFFFFA0002000, 0xFFFFFFFFA0002200)]
THREADS = """\
/proc/2/stack:[<0>] 0xffffffffa0009000
/proc/77/stack:[<0>] 0xffffffffa0002123
/proc/77/stack:[<0>] 0xffffffffa0002010
/proc/1/comm:systemd
/proc/77/comm:larva_eater
"""


@pytest.mark.parametrize(
    ("name", "imports", "words"),
    [
        ("/proc/larva", {"proc_create_single_data"}, "/proc/larva"),
        ("/sys/kernel/debug/larva", {"debugfs_create_dir"}, "/sys/kernel/debug/larva"),
        ("character 240", {"__register_chrdev"}, "character device number 240"),
        ("/sys/dev/char/10:120", {"misc_register"}, "/sys/dev/char/10:120"),
        ("fs larvafs", {"register_filesystem"}, "file system type larvafs"),
    ],
)
def test_a_name_that_the_module_made_and_left_is_a_warning(name: str, imports: set[str], words: str) -> None:
    (crash,) = find_names("larva", imports, BEFORE, BEFORE | {name})
    assert crash.title == f"left behind: {words} is still there after the unload"
    assert (outcome_of(crash), crash.class_, crash.module) == ("warning", "left-behind", "larva")
    assert crash.reason
    assert can_leave(imports)


def test_what_the_module_cannot_have_made_is_not_its_own() -> None:
    after = BEFORE | {"/proc/larva", "/sys/dev/block/7:3", "fs larvafs"}
    assert find_names("larva", {"misc_register", "printk"}, BEFORE, after) == []
    assert find_names("larva", {"proc_create"}, BEFORE, BEFORE - {"fs ext4"}) == []
    assert not can_leave({"_printk", "kmalloc_trace"})


def test_a_thread_in_the_code_of_a_module_that_is_gone_is_named() -> None:
    (crash,) = find_threads(THREADS, RANGES)
    assert (crash.task, crash.pid, [frame.function for frame in crash.frames]) == (
        *("larva_eater", 77),
        ["0xffffffffa0002123", "0xffffffffa0002010"],
    )
    assert "task larva_eater still runs in its code" in crash.title


def test_the_same_leftover_has_one_fingerprint_whatever_its_number() -> None:
    one, other = (find_names("m", {"misc_register"}, BEFORE, BEFORE | {f"/sys/dev/char/10:{n}"})[0] for n in (1, 22))
    assert one.fingerprint == other.fingerprint


@given(st.text())
def test_any_answer_is_read(text: str) -> None:
    assert find_threads(text, RANGES) == [] or "a000" in text
