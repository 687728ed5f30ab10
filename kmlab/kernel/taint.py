"""The kernel's taint flags by bit, letter and name; follows kernel/panic.c."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class TaintFlag(NamedTuple):
    """One reason for which a kernel is no longer as its makers would support it."""

    bit: int
    letter: str
    name: str
    """The kernel's own, without TAINT_."""
    meaning: str


FLAGS = (
    TaintFlag(0, "P", "PROPRIETARY_MODULE", "a module that is not GPL-compatible was loaded"),
    TaintFlag(1, "F", "FORCED_MODULE", "a module was loaded by force"),
    TaintFlag(2, "S", "CPU_OUT_OF_SPEC", "the kernel runs on a system out of specification"),
    TaintFlag(3, "R", "FORCED_RMMOD", "a module was unloaded by force"),
    TaintFlag(4, "M", "MACHINE_CHECK", "the processor reported a machine check"),
    TaintFlag(5, "B", "BAD_PAGE", "a page or a slab object was found damaged"),
    TaintFlag(6, "U", "USER", "a program in user space asked for the taint"),
    TaintFlag(7, "D", "DIE", "the kernel has died once: an oops or a BUG"),
    TaintFlag(8, "A", "OVERRIDDEN_ACPI_TABLE", "an ACPI table was overridden"),
    TaintFlag(9, "W", "WARN", "the kernel printed a WARNING"),
    TaintFlag(10, "C", "CRAP", "a module of the staging tree was loaded"),
    TaintFlag(11, "I", "FIRMWARE_WORKAROUND", "the kernel works around a bug of the firmware"),
    TaintFlag(12, "O", "OOT_MODULE", "a module from outside the kernel's tree was loaded"),
    TaintFlag(13, "E", "UNSIGNED_MODULE", "a module without a valid signature was loaded"),
    TaintFlag(14, "L", "SOFTLOCKUP", "a CPU was stuck for long: a soft lockup"),
    TaintFlag(15, "K", "LIVEPATCH", "the kernel was live-patched"),
    TaintFlag(16, "X", "AUX", "a taint of the distribution's own"),
    TaintFlag(17, "T", "RANDSTRUCT", "the kernel's structures were laid out at random"),
    TaintFlag(18, "N", "TEST", "an in-kernel test was run"),
    # Since v6.15; the highest bit that a released kernel of ours has.
    TaintFlag(19, "J", "FWCTL", "a program used fwctl to change a device's firmware"),
)


def taint_names(mask: int) -> list[str]:
    """The names of the flags in a mask, as /proc/sys/kernel/tainted gives it; an unknown bit N is `BIT_N`."""
    known = {flag.bit: flag.name for flag in FLAGS}
    return [known.get(bit, f"BIT_{bit}") for bit in range(max(mask, 0).bit_length()) if mask >> bit & 1]


def taint_mask(names: Iterable[str]) -> int:
    """The mask of some names, with or without TAINT_; KeyError for one that is none."""
    known = {flag.name: flag.bit for flag in FLAGS}
    mask = 0
    for name in names:
        plain = name.removeprefix("TAINT_")
        mask |= 1 << (int(plain[4:]) if re.fullmatch(r"BIT_\d{1,2}", plain) else known[plain])
    return mask


def taint_meaning(name: str) -> str:
    """What a flag says, in plain words; empty for an unknown one."""
    return next((flag.meaning for flag in FLAGS if flag.name == name), "")


def parse_taint_letters(letters: str) -> list[str]:
    """The names behind letters such as `OE`, as /sys/module/NAME/taint and the kernel's reports have them.

    G stands where P could, and says nothing; unknown letters are passed over.
    """
    return [flag.name for flag in FLAGS if flag.letter in letters]


def find_taint(line: str) -> list[str] | None:
    """The flags that a line of a report names, in both shapes; None for a line that does not speak of taint.

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
    """The mask of all flags that a log's reports name; for a guest that cannot be asked any more."""
    return taint_mask({name for line in lines if "ainted: " in line for name in find_taint(line) or ()} & _NAMES)


_NAMES = {flag.name for flag in FLAGS}
