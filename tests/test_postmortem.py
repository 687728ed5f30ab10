"""Findings with their places: what a run leaves behind."""

from __future__ import annotations

from kmlab.kernel.oops import Frame, outcome_of
from kmlab.postmortem import silent_hang


def frame(function: str, file: str | None, *, inlined: bool = False, module: str | None = "spin") -> Frame:
    return Frame(function, 23, 36, module, reliable=True, exact=True, file=file, line=9, inlined=inlined)


def test_a_silent_hang_is_in_the_module_s_function_and_not_in_a_header_s() -> None:
    found = silent_hang(
        [
            frame("max_sev_asid", None, module=None),
            frame("cpu_relax", "arch/x86/include/asm/vdso/processor.h", inlined=True),
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
