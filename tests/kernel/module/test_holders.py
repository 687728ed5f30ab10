"""kmlab.kernel.holders: who keeps a module from being unloaded."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kmlab.kernel.module.proc_modules import ProcModule
from kmlab.kernel.module.unload_errors import explain_unload_failure
from kmlab.kernel.module.users import NAMES, Holder, find_holders, listed, parse_names, question

BEFORE = frozenset({"/proc/cpuinfo", "/sys/dev/char/1:3", "character 1", "fs proc", "fs ext4", "/sys/kernel/debug/bdi"})


def answer(*records: str) -> bytes:
    return "".join(f"{record}\0" for record in records).encode()


def names(*lines: str) -> list[str]:
    return [f"name\t{line}" for line in (*(n for n in BEFORE if n.startswith("/")), *lines)]


def held(*records: str, new: tuple[str, ...] = (), before: frozenset[str] | None = BEFORE) -> list[str]:
    """The explanation if `new` exists in addition to what existed before."""
    return [str(h) for h in find_holders(answer(*names(*new), *records), "larva", before)]


def test_the_names_are_devices_files_majors_and_file_systems() -> None:
    said = "/sys/dev/char/1:3\n/proc/cpuinfo\nCharacter devices:\n  1 mem\n240 larva\n\nBlock devices:\n  8 sd\n"
    assert parse_names(said + "nodev\tsysfs\n\text4\n") == {
        *("/sys/dev/char/1:3", "/proc/cpuinfo", "character 1", "character 240", "block 8", "fs sysfs", "fs ext4"),
    }


def test_a_process_with_the_module_s_device_open_is_named_with_its_words() -> None:
    (said,) = held(
        "device\t7/fd/0\tcharacter special file\t1:3",
        "device\t512/fd/0\tcharacter special file\ta:3a",
        "link\t512/fd/0\t/dev/larva",
        "comm\t512/comm:sleep",
        "argument\t512/cmdline:sleep",
        "argument\t512/cmdline:600",
        new=("/sys/dev/char/10:58",),
    )
    assert said == "process 512 (sleep 600) has /dev/larva open"


def test_a_node_made_by_hand_is_known_by_the_major_that_is_new() -> None:
    record = ("device\t9/map_files/7f00-7f01\tcharacter special file\tf0:0", "link\t9/map_files/7f00-7f01\t/tmp/node")
    assert held(*record, new=("Character devices:", "240 larva")) == ["process 9 has /tmp/node mapped"]


def test_a_number_is_read_for_the_kind_of_its_device() -> None:
    record = ("device\t9/fd/3\tblock special file\tf0:0", "link\t9/fd/3\t/dev/disk")
    assert held(*record, new=("Character devices:", "240 larva")) == []
    assert held(*record, new=("Block devices:", "240 larva")) == ["process 9 has /dev/disk open"]


def test_files_in_proc_and_debugfs_are_the_module_s_where_they_are_new() -> None:
    said = held(
        "link\t9/fd/3\t/proc/larva/state",
        "link\t9/fd/4\t/proc/cpuinfo",
        "link\t9/fd/5\t/proc/9/maps",
        "link\t10/fd/3\t/sys/kernel/debug/larva/knob",
        new=("/proc/larva", "/sys/kernel/debug/larva"),
    )
    assert said == ["process 9 has /proc/larva/state open", "process 10 has /sys/kernel/debug/larva/knob open"]


def test_a_mount_is_named_and_who_is_in_it() -> None:
    found = find_holders(
        answer(
            *names("nodev\tproc", "\tlarvafs"),
            r"mount	40 23 0:44 / /mnt/a\040b rw - larvafs none rw",
            "mount\t23 1 8:1 / / rw - ext4 /dev/vda1 rw",
            "link\t12/cwd\t/mnt/a b/deep",
            "comm\t12/comm:sh",
        ),
        "larva",
        BEFORE,
    )
    assert [str(h) for h in found] == [
        "its file system larvafs is mounted on /mnt/a b",
        "process 12 (sh) is in /mnt/a b",
    ]
    assert found[0].remedy == "umount '/mnt/a b' in the guest"


def test_a_mount_of_the_module_s_own_disk_is_named() -> None:
    said = held("mount\t40 23 251:0 / /mnt rw - ext4 /dev/larva0 rw", new=("/sys/dev/block/251:0",))
    assert said == ["a file system on its disk 251:0 is mounted on /mnt"]


def test_a_task_in_a_function_of_the_module_is_named_once() -> None:
    said = held(
        "stack\t77/task/78/stack:[<0>] wait_here+0x25/0x40 [larva]",
        "stack\t77/task/78/stack:[<0>] larva_read+0x9/0x10 [larva]",
        "argument\t77/cmdline:cat",
    )
    assert said[0] == "process 78 (cat) is in its function wait_here()"


def test_sockets_of_the_module_s_protocol_are_counted() -> None:
    said = held(
        "socket\tprotocol  size sockets  memory press maxhdr  slab module     cl co di",
        "socket\tLARVA     1024      2      -1   NI       0   no   larva      n  n",
        "socket\tTCP       2000      5      -1   NI       0   yes  kernel     y  y",
    )
    assert said == ["2 sockets of its protocol LARVA are open"]


def test_where_nobody_looked_before_the_module_s_name_is_what_there_is() -> None:
    records = (
        "device\t5/fd/3\tcharacter special file\tf0:1",
        "link\t5/fd/3\t/dev/larva1",
        "device\t5/fd/4\tcharacter special file\t1:3",
        "link\t5/fd/4\t/dev/null",
        "link\t5/fd/5\t/proc/larva",
    )
    assert held(*records, before=None) == ["process 5 has /dev/larva1 open and has /proc/larva open"]


def test_what_a_guest_says_reaches_no_terminal_as_it_is_and_has_an_end() -> None:
    records = [f"device\t{n}/fd/0\tcharacter special file\ta:3a" for n in range(500)]
    records += [
        "link\t1/fd/0\t/dev/\x1b[31m\nred",
        "argument\t1/cmdline:\x1b]0;title\x07",
        "device\t\t\t",
        "mount\t",
        "",
    ]
    found = find_holders(answer(*names("/sys/dev/char/10:58"), *records), "larva", BEFORE)
    assert len(found) == 64
    assert not any(sign in str(h) + h.remedy for h in found for sign in "\x1b\n\x07")


def test_the_question_is_answered_by_a_real_proc(tmp_path: Path) -> None:
    before = parse_names(subprocess.run(["sh", "-c", NAMES], capture_output=True, text=True, check=False).stdout)
    assert "character 1" in before and "fs proc" in before and "/proc/cpuinfo" in before
    with Path("/dev/zero").open("rb") as zero, subprocess.Popen(["sleep", "60"], stdin=zero) as sleeper:
        said = subprocess.run(["sh", "-c", question("zero")], capture_output=True, check=False).stdout
        found = find_holders(said, "other", before - {"/sys/dev/char/1:5"})
        sleeper.kill()
    mine = [h for h in found if h.pid == sleeper.pid]
    assert [str(h) for h in mine] == [f"process {sleeper.pid} (sleep 60) has /dev/zero open"]
    assert str(sleeper.pid) in mine[0].remedy


def test_the_reason_says_who_and_what_to_do() -> None:
    busy = "rmmod: ERROR: Module larva is in use\n"
    holder = Holder("has /dev/larva open", "end it in the guest (kill 9) or have it close that", 9, "sleep 600")
    failure = explain_unload_failure(busy, 1, "larva", ProcModule(1), found=(holder,))
    assert failure is not None and failure.kind == "in-use"
    assert failure.reason == (
        "larva is in use (1 reference): process 9 (sleep 600) has /dev/larva open: end it in the guest (kill 9) or "
        "have it close that; then it can be unloaded."
    )
    nobody = explain_unload_failure(busy, 1, "larva", ProcModule(1), found=())
    assert nobody is not None and "no module, process or mount was found" in nobody.reason
    both = explain_unload_failure(busy, 1, "larva", ProcModule(2, ("user",)), found=(holder,))
    assert both is not None and "in use by user: unload that first; process 9" in both.reason


def test_of_many_holders_the_first_are_told() -> None:
    assert listed([Holder(f"mount {n}", "umount", None) for n in range(5)]).endswith("mount 2: umount; and 2 more")
