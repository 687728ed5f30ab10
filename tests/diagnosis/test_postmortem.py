"""Findings with their places: what a run leaves behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath

from kmlab.common import paths
from kmlab.diagnosis.hang import busy_hang, merge_hang_findings, read_cpus, silent_hang, waiting_hang
from kmlab.kernel.crash.crash import Crash, outcome_of
from kmlab.kernel.crash.stack_trace import Frame
from kmlab.kernel.hang.tasks import parse_tasks
from kmlab.kernel.symbols.registers import window
from kmlab.provision.guest import GuestRecord
from kmlab.testing import World
from tests.crashers import BUILT
from tests.places import TEST_DATA

TASKS = TEST_DATA / "tasks"
(HANGS,) = BUILT.glob("hangs-6.1-*.ko")
ASKED = ({"hangs.ko": HANGS.read_bytes()}, PurePosixPath("/nowhere"), frozenset({"hangs"}), "unload")


def frame(
    function: str, file: str | None, *, inlined: bool = False, module: str | None = "spin", own: bool = True
) -> Frame:
    return Frame(function, 23, 36, module, reliable=True, exact=True, file=file, line=9, inlined=inlined, own=own)


def test_a_silent_hang_is_in_the_module_s_function_and_not_in_a_header_s() -> None:
    found = silent_hang(
        [
            frame("max_sev_asid", None, module=None),
            frame("cpu_relax", "arch/x86/include/asm/vdso/processor.h", inlined=True, own=False),
            frame("spin_irqs_off", "spin.c"),
        ],
        "load",
    )
    assert (found.function, found.module, found.file, found.line) == ("spin_irqs_off", "spin", "spin.c", 9)
    assert found.title == "hang in spin_irqs_off: the load did not end"
    assert outcome_of(found) == "hang"


def test_a_function_of_the_module_s_own_that_was_inlined_is_the_one_to_blame() -> None:
    found = silent_hang([frame("wait_here", "spin.c", inlined=True), frame("spin_init", "spin.c")], "load")
    assert (found.function, found.file) == ("wait_here", "spin.c")


def test_without_a_frame_a_hang_is_said_all_the_same() -> None:
    found = silent_hang([], "unload")
    assert (found.title, found.function, found.file) == ("hang: the unload did not end", None, None)


def answer(name: str) -> list[str]:
    return (TASKS / f"{name}.txt").read_text().splitlines()


def test_an_exit_that_jumped_away_is_found_in_what_rmmod_waits_for() -> None:
    found = waiting_hang(parse_tasks(answer("exit-waits-6.1")), *ASKED)
    assert found is not None
    assert (found.function, found.module, found.task) == ("complete_never", "hangs", "rmmod")
    assert found.title == "hang in complete_never: the unload did not end"
    assert waiting_hang(parse_tasks(answer("poll-6.1")), *ASKED) is None


def test_a_cpu_in_the_module_is_found_in_the_kernel_s_answer() -> None:
    found = busy_hang(answer("busy-work-6.1"), *ASKED)
    assert found is not None
    assert (found.function, found.module) == ("busy_work", "hangs")
    assert busy_hang(answer("poll-6.1"), *ASKED) is None


def test_a_loop_of_the_module_s_is_to_blame_and_not_who_waits_for_it() -> None:
    own = frozenset({"spin"})
    loop = silent_hang([frame("busy_work", "spin.c")], "load")
    waits = dataclasses.replace(silent_hang([frame("flush", "spin.c")], "load"), class_="hung-task")
    victim = dataclasses.replace(waits, module=None, function="sync_inodes_sb")
    stuck = dataclasses.replace(waits, class_="soft-lockup")

    def told(*crashes: Crash, busy: Crash | None = loop, silent: Crash | None = loop) -> list[Crash]:
        return merge_hang_findings(list(crashes), busy, silent, own)

    assert told(waits, victim) == [loop, victim]
    assert told(stuck) == [stuck], "the kernel's own word, where it has one on the loop"
    assert told() == [loop]
    oops = dataclasses.replace(waits, kind="oops", class_="null-dereference", module=None)
    assert told(oops) == [oops], "what waits, waits for a task that was killed"
    assert told(waits, busy=None, silent=loop) == [waits]
    nameless = silent_hang([], "load")
    assert told(victim, busy=None, silent=nameless) == [victim]
    assert told(busy=None, silent=nameless) == [nameless]
    assert told(busy=None, silent=None) == []
    cycle = dataclasses.replace(loop, class_="deadlock")
    assert told(waits, victim, busy=None, silent=cycle) == [cycle, victim]
    assert told(stuck, busy=None, silent=cycle) == [stuck]


def test_a_cpu_in_the_kernel_s_own_code_is_not_in_a_module_that_has_the_same_bytes(xdg: Path) -> None:
    address = 0xFFFFFFFF9B920017
    first, size = window(address)
    # Of irq_off_loop, as in test_registers.
    code = bytes.fromhex("0f1f440000fa0f1f4400008a05f120000084c07504f390ebf2fb0f1f440000e9aabbccdd").ljust(
        size, b"\xcc"
    )
    images = {"irq_off_loop.ko": (TASKS.parent / "ko" / "irq_off_loop.ko").read_bytes()}
    record = GuestRecord(
        name="debian",
        uri="embedded",
        domain="kmlab",
        arch="x86_64",
        release="7.3.4",
        accel="tcg",
        why="",
        firmware="",
        base="b",
        checkpoint="c",
        port=1,
        host_key="",
        tty=None,
        pid=None,
        started=0.0,
    )
    with World() as world:
        world.monitor["info registers -a"] = f"CPU#0\nRIP={address:x} HLT=0\n"
        world.monitor[f"x /{size}xb 0x{first:x}"] = "0: " + " ".join(f"0x{byte:02x}" for byte in code)
        look = (world.host, record, paths.GuestFiles(xdg / "debian"), images, PurePosixPath("/nowhere"))
        (frame,) = read_cpus(*look)[1][-1:]
        assert (frame.module, frame.function) == ("irq_off_loop", "spin_irqs_off")
        paths.write_text(paths.checkpoints() / "c" / "kallsyms", f"{address - 0x17:016x} T pv_native_safe_halt\n")
        (frame,) = read_cpus(*look)[1]
        assert (frame.module, frame.function) == (None, "pv_native_safe_halt")
