"""List the detectors that a run switches on as the last thing before the module is loaded.

Some must not be on during the boot: booting uses up KFENCE's 255 objects, and kmemleak reports what is not the module's
fault. A new detector is a row of DETECTORS.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple


class Detector(NamedTuple):
    """One detector of the kernel."""

    name: str
    sign: str
    """The path that a guest has if its kernel has the detector: one of the names that `DETECTOR_NAMES` lists."""
    arm: str = ""
    """The shell line that switches it on, or makes it forget what was before."""
    disarm: str = ""
    """The shell line that switches it off after the run, if it makes the guest slower."""


_KFENCE = "/sys/module/kfence/parameters"
DETECTORS = (
    # Documentation/dev-tools/kfence.rst: `burst` and `skip_covered_thresh` make it guard as many objects as it can.
    Detector(
        "kfence",
        "/sys/module/kfence",
        f"for set in 'skip_covered_thresh 100' 'burst 1000' 'sample_interval 1'; do "
        f'[ ! -w {_KFENCE}/${{set% *}} ] || echo "${{set#* }}" > {_KFENCE}/${{set% *}}; done',
        f"echo 0 > {_KFENCE}/sample_interval",
    ),
    # Documentation/dev-tools/kcsan.rst
    Detector(
        "kcsan",
        "/sys/kernel/debug/kcsan",
        "echo on > /sys/kernel/debug/kcsan",
        "echo off > /sys/kernel/debug/kcsan",
    ),
    # Documentation/dev-tools/kmemleak.rst
    Detector("kmemleak", "/sys/kernel/debug/kmemleak", "echo clear > /sys/kernel/debug/kmemleak"),
    # guests/kernel/append/mm/kmemleak.c, in the kernels that kmlab builds.
    Detector("allocations", "/sys/kernel/debug/kmemleak_by"),
    # Documentation/mm/slub.rst: caches have this file with slub_debug=U.
    Detector("slab", "/sys/kernel/debug/slab/kmalloc-64/alloc_traces"),
)

DETECTOR_NAMES = "/sys/module/kfence* /sys/kernel/debug/slab/kmalloc-64/*"
"""Patterns for the guest's shell: the signs of detectors that are not files of /sys/kernel/debug itself."""
VALIDATE_SLABS = "for file in /sys/kernel/slab/*/validate; do echo 1 > $file; done 2> /dev/null"
"""A shell line that makes the kernel check each object of all slab caches, and report what is damaged."""
READ_SLABS = "grep -H -A 24 -E '^ *[0-9]+ 0xffff' /sys/kernel/debug/slab/*/alloc_traces 2> /dev/null"
"""A shell line that prints where objects were allocated whose allocating code is not in any loaded module."""
READ_VMALLOC = "grep -E ' 0xffff[0-9a-f]+ ' /proc/vmallocinfo"
"""A shell line that prints the areas of vmalloc() whose allocating code is not in any loaded module."""
READ_ALLOCATIONS = "echo '{modules}' > /sys/kernel/debug/kmemleak_by; cat /sys/kernel/debug/kmemleak_by"
"""A shell line that prints what these modules (names with blanks between) have allocated and not freed."""
SCAN_KMEMLEAK = "echo scan > /sys/kernel/debug/kmemleak"
READ_KMEMLEAK = "cat /sys/kernel/debug/kmemleak"


def find_detectors(names: Collection[str] | None) -> tuple[Detector, ...]:
    """Return the detectors of a guest, given the names that it has."""
    return tuple(detector for detector in DETECTORS if names and detector.sign in names)


def arm_line(detectors: Iterable[Detector]) -> str:
    """Return the shell line that switches these detectors on; empty if there is nothing to do."""
    return _join(detector.arm for detector in detectors)


def disarm_line(detectors: Iterable[Detector]) -> str:
    """Return the shell line that switches these detectors off; empty if there is nothing to do."""
    return _join(detector.disarm for detector in detectors)


def _join(lines: Iterable[str]) -> str:
    return " ".join(f"{{ {line}; }} 2> /dev/null;" for line in lines if line)
