"""The kernel's taint flags by bit, letter and name; follows kernel/panic.c."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple


class TaintFlag(NamedTuple):
    """One reason for which a kernel is no longer as its makers would support it."""

    bit: int
    letter: str
    name: str
    """The kernel's own, without TAINT_."""
    meaning: str
    outcome: str | None = "warning"
    """What a run comes to in which it was set and no finding says why; None: it only says what was loaded."""


_FINDINGS = {
    "warning": frozenset({"warning", "oops", "panic", "hang"}),
    "oops": frozenset({"oops", "panic"}),
    "hang": frozenset({"hang", "panic"}),
}
"""The kinds of findings that explain a flag of each outcome."""
FLAGS = (
    TaintFlag(0, "P", "PROPRIETARY_MODULE", "a module that is not GPL-compatible was loaded", None),
    TaintFlag(1, "F", "FORCED_MODULE", "a module was loaded by force"),
    TaintFlag(2, "S", "CPU_OUT_OF_SPEC", "the kernel runs on a system out of specification"),
    TaintFlag(3, "R", "FORCED_RMMOD", "a module was unloaded by force"),
    TaintFlag(4, "M", "MACHINE_CHECK", "the processor reported a machine check", "oops"),
    TaintFlag(5, "B", "BAD_PAGE", "a page or a slab object was found damaged", "oops"),
    TaintFlag(6, "U", "USER", "a program in user space asked for the taint"),
    TaintFlag(7, "D", "DIE", "the kernel has died once: an oops or a BUG", "oops"),
    TaintFlag(8, "A", "OVERRIDDEN_ACPI_TABLE", "an ACPI table was overridden"),
    TaintFlag(9, "W", "WARN", "the kernel printed a WARNING"),
    TaintFlag(10, "C", "CRAP", "a module of the staging tree was loaded", None),
    TaintFlag(11, "I", "FIRMWARE_WORKAROUND", "the kernel works around a bug of the firmware"),
    TaintFlag(12, "O", "OOT_MODULE", "a module from outside the kernel's tree was loaded", None),
    TaintFlag(13, "E", "UNSIGNED_MODULE", "a module without a valid signature was loaded", None),
    TaintFlag(14, "L", "SOFTLOCKUP", "a CPU was stuck for long: a soft lockup", "hang"),
    TaintFlag(15, "K", "LIVEPATCH", "the kernel was live-patched", None),
    TaintFlag(16, "X", "AUX", "a taint of the distribution's own", None),
    TaintFlag(17, "T", "RANDSTRUCT", "the kernel's structures were laid out at random", None),
    TaintFlag(18, "N", "TEST", "an in-kernel test was run", None),
    # Since v6.15; the highest bit that a released kernel of ours has.
    TaintFlag(19, "J", "FWCTL", "a program used fwctl to change a device's firmware"),
)


def taint_names(mask: int) -> list[str]:
    """Return the names of the flags in a mask, as /proc/sys/kernel/tainted gives it; an unknown bit N is `BIT_N`."""
    known = {flag.bit: flag.name for flag in FLAGS}
    return [known.get(bit, f"BIT_{bit}") for bit in range(max(mask, 0).bit_length()) if mask >> bit & 1]


def find_unexplained(mask: int, kinds: Collection[str]) -> list[TaintFlag]:
    """Return the flags of a mask that say that something went wrong, and that no finding of these kinds explains.

    A flag that no table of ours knows is one of them.
    """
    known = {flag.bit: flag for flag in FLAGS}
    bits = [bit for bit in range(max(mask, 0).bit_length()) if mask >> bit & 1]
    flags = [known.get(bit) or TaintFlag(bit, "?", f"BIT_{bit}", "a flag that kmlab does not know") for bit in bits]
    return [flag for flag in flags if flag.outcome and _explains(flag).isdisjoint(kinds)]


def _explains(flag: TaintFlag) -> frozenset[str]:
    # A WARNING explains the flag of a WARNING, and not that a kernel was tampered with.
    return frozenset() if flag.outcome == "warning" and flag.name != "WARN" else _FINDINGS[flag.outcome or "warning"]


def taint_mask(names: Iterable[str]) -> int:
    """Return the mask of some names, with or without TAINT_; KeyError for one that is none."""
    known = {flag.name: flag.bit for flag in FLAGS}
    mask = 0
    for name in names:
        plain = name.removeprefix("TAINT_")
        mask |= 1 << (int(plain[4:]) if re.fullmatch(r"BIT_\d{1,2}", plain) else known[plain])
    return mask


def taint_meaning(name: str) -> str:
    """Return what a flag says, in plain words; empty for an unknown one."""
    return next((flag.meaning for flag in FLAGS if flag.name == name), "")


def parse_taint_letters(letters: str) -> list[str]:
    """Return the names behind letters such as `OE`, as /sys/module/NAME/taint and the kernel's reports have them.

    G stands where P could, and says nothing; unknown letters are passed over.
    """
    return [flag.name for flag in FLAGS if flag.letter in letters]


def find_taint(line: str) -> list[str] | None:
    """Return the flags that a line of a report names, in both shapes; None for a line that does not speak of taint.

    Since Linux v6.11 a second line says `Tainted: [D]=DIE, [O]=OOT_MODULE` beside the letters' one.
    """
    if "Not tainted" in line:
        return []
    spelled = re.search(r"Tainted: ((?:\[[A-Z]\]=\w+(?:, )?)+)", line)
    if spelled:
        return re.findall(r"\]=(\w+)", spelled[1])
    lettered = re.search(r"Tainted: ([A-Z](?: *[A-Z])*)(?= |$)", line)
    return parse_taint_letters(lettered[1]) if lettered else None


def find_taints(lines: Iterable[str]) -> int:
    """Return the mask of all flags that a log's reports name; for a guest that cannot be asked any more."""
    return taint_mask({name for line in lines if "ainted: " in line for name in find_taint(line) or ()} & _NAMES)


_NAMES = {flag.name for flag in FLAGS}
