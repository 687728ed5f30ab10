"""Find memory that a module allocated and did not free, in what the kernel lists after the module is gone.

Three lists of the kernel say who allocated what: slab caches with slub_debug=U (mm/slub.c, slab_debugfs_show), the
areas of vmalloc() (mm/vmalloc.c, s_show), and kmemleak (mm/kmemleak.c, print_unreferenced). As the module is gone, its
functions are plain addresses there; the run knows where its sections were.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kmlab.kernel.symbols.elf import MalformedModule
from kmlab.kernel.symbols.symbolizer import ModuleSymbols


class CodeRange(NamedTuple):
    """Where the code of one section of a module was."""

    module: str
    begin: int
    end: int


class Leak(NamedTuple):
    """Memory that one place in a module allocated, and that is still allocated."""

    what: str
    """The slab cache, or `vmalloc`."""
    objects: int
    size: int
    """Bytes of each; 0 where the kernel's list does not say."""
    address: int
    """The place in the module's code."""
    pid: int | None
    stack: tuple[str, ...] = ()
    """The frames beyond that place, as the kernel wrote them, innermost first."""


_SLAB = re.compile(
    r"(?:\S*/slab/(?P<cache>[^/\s]{1,64})/alloc_traces:)? *(?P<count>\d+) 0x(?P<address>[0-9a-f]+)\b(?P<rest>.*)"
)
_STACK = re.compile(
    r"(?:\S*/alloc_traces-)?\s+(?P<frame>(?:0x[0-9a-f]+|[\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+)(?: \[[\w-]+\])?)\s*"
)
_VMALLOC = re.compile(r"0x[0-9a-f]+-0x[0-9a-f]+ +(?P<size>\d+) 0x(?P<address>[0-9a-f]+)\b.*")
_PID = re.compile(r"\bpid=(\d+)")
_CACHE = re.compile(r"kmalloc-(?:[a-z]+-)*(?P<size>\d+)(?P<unit>[kM]?)")
_OBJECT = re.compile("^unreferenced object ", re.MULTILINE)
_RAW = re.compile(r"\b0x([0-9a-f]{8,16})\b|\[<([0-9a-f]{8,16})>\]")
_FRAME = re.compile(r"^ +\[<[0-9a-f]+>\] (?P<name>\S.*)$", re.MULTILINE)
_PLACE = re.compile(r"\b(?P<module>[\w-]{1,64}):(?P<part>text|init)\+0x(?P<offset>[0-9a-f]{1,8})\b")
_OF_GCOV = re.compile(r"^ +\[<[0-9a-f]+>\] (?:__)?gcov_", re.MULTILINE)
"""What the kernel keeps of a module's counters after the module is gone (kernel/gcov/fs.c)."""
_ALLOCATOR = re.compile(
    r"(?:__|___)?(?:kmem_cache_alloc|kmalloc|kzalloc|kcalloc|krealloc|kvmalloc|kvzalloc|kvrealloc|kmemdup|kstrdup|kstrndup"
    r"|kasprintf|kvasprintf|kmemleak|vmalloc|vzalloc|vmap_|pcpu_|alloc_percpu|alloc_pages|get_free_pages|slab_|do_kmalloc"
    r"|memdup|strndup|create_object|set_track)"
)
"""Functions of the kernel that allocate for their caller, by the begin of their names (mm/slub.c, mm/util.c)."""
_MOST = 8
"""Leaks of a run that become findings."""


def code_ranges(sections: Mapping[str, Mapping[str, int]], sizes: Mapping[str, Mapping[str, int]]) -> list[CodeRange]:
    """Return where the code of modules was, from the addresses and the sizes of their sections."""
    return [
        CodeRange(module, begin, begin + sizes.get(module, {}).get(section, 0))
        for module, places in sections.items()
        for section, begin in places.items()
        if ".text" in section
    ]


def parse_slab_traces(text: str, ranges: Sequence[CodeRange]) -> list[Leak]:
    """Return the objects of slab caches that were allocated by code in these ranges."""
    leaks: list[Leak] = []
    first = ""
    for line in text.splitlines():
        if match := _SLAB.fullmatch(line):
            address, pid = int(match["address"], 16), _PID.search(match["rest"])
            first = f"0x{address:x}" if _is_in(address, ranges) else ""
            if first:
                cache = match["cache"] or "slab"
                leaks.append(Leak(cache, int(match["count"]), _size_of(cache), address, int(pid[1]) if pid else None))
        elif first and (frame := _STACK.fullmatch(line)):
            # The kernel writes the allocating functions of its own first.
            stack = (*leaks[-1].stack, frame["frame"])
            leaks[-1] = leaks[-1]._replace(stack=() if frame["frame"] == first else stack)
    return leaks


def parse_vmalloc_areas(text: str, ranges: Sequence[CodeRange]) -> list[Leak]:
    """Return the areas of vmalloc() that were allocated by code in these ranges. Their size includes a guard page."""
    found = (_VMALLOC.fullmatch(line.strip()) for line in text.splitlines())
    return [
        Leak("vmalloc", 1, int(match["size"]), address, None)
        for match in found
        if match and _is_in(address := int(match["address"], 16), ranges)
    ]


def parse_kmemleak(text: str, ranges: Sequence[CodeRange]) -> list[str]:
    """Return those reports of kmemleak that have a frame in these ranges, or in a module of that name."""
    starts = [match.start() for match in _OBJECT.finditer(text)]
    reports = [text[start:end] for start, end in itertools.pairwise([*starts, len(text)])]
    names = tuple(f"[{name}]" for name in {place.module for place in ranges})
    return [
        report.rstrip("\n")
        for report in reports
        if any(name in report for name in names)
        or any(_is_in(int(match[1] or match[2], 16), ranges) for match in _RAW.finditer(report))
    ][:_MOST]


def parse_allocations(text: str, symbols: Mapping[str, ModuleSymbols]) -> list[str]:
    """Return the reports of what these modules allocated, with the names of their functions.

    guests/kernel/append/mm/kmemleak.c writes a place in a module as NAME:text+OFFSET or NAME:init+OFFSET.
    """

    def named(match: re.Match[str]) -> str:
        found = None
        if match["module"] in symbols:
            with contextlib.suppress(MalformedModule):  # a build may write anything
                found = symbols[match["module"]].symbol_in_code(match["part"], int(match["offset"], 16))
        if found is None:  # a module without symbols leaks, too
            return f"unknown+0x{match['offset']}/0x0 [{match['module']}]"
        return f"{found.function}+0x{found.offset:x}/0x{found.size or 0:x} [{match['module']}]"

    reports = parse_kmemleak(_PLACE.sub(named, text), [CodeRange(name, 0, 0) for name in symbols])
    return [report for report in reports if not _OF_GCOV.search(report)]


def split_reports(reports: Sequence[str], ranges: Sequence[CodeRange]) -> tuple[list[str], list[str]]:
    """Split reports of kmemleak: memory that the module asked for itself, and what the kernel allocated for it."""
    own: list[str] = []
    other: list[str] = []
    for report in reports:
        frames = [match["name"] for match in _FRAME.finditer(report)]
        asking = next((name for name in frames if not _ALLOCATOR.match(name)), "")
        match = _RAW.search(asking)
        is_own = "[" in asking or (match is not None and _is_in(int(match[1] or match[2], 16), ranges))
        (own if is_own else other).append(report)
    return own, other


def object_of(report: str) -> str:
    """Return the first line of a report, which names the object."""
    return report.partition("\n")[0]


def new_leaks(before: Sequence[Leak], after: Sequence[Leak]) -> list[Leak]:
    """Return the leaks that were not there before the run; a place that allocated more since has the difference."""
    old = Counter[tuple[str, int]]()
    for leak in before:
        old[leak.what, leak.address] += leak.objects
    grown = [leak._replace(objects=leak.objects - old[leak.what, leak.address]) for leak in after]
    return [leak for leak in grown if leak.objects > 0]


def format_reports(leaks: Sequence[Leak]) -> list[str]:
    """Return leaks in the words of kmemleak, which the judge of kernel logs reads; at most eight, each place once."""
    places = {leak.address: leak for leak in reversed(leaks)}
    return [_format(leak) for leak in list(places.values())[:_MOST]]


def _format(leak: Leak) -> str:
    lines = [f"unreferenced object 0x{leak.address:x} (size {leak.size}):"]
    if leak.pid is not None:
        lines.append(f'  comm "insmod", pid {leak.pid}, jiffies 0')
    lines += [
        f"  {leak.objects} objects of {leak.what}",
        "  backtrace:",
        f"    [<{leak.address:016x}>] 0x{leak.address:x}",
    ]
    return "\n".join([*lines, *(f"    {frame}" for frame in leak.stack)])


def _size_of(cache: str) -> int:
    match = _CACHE.fullmatch(cache)
    return int(match["size"]) * {"": 1, "k": 1 << 10, "M": 1 << 20}[match["unit"]] if match else 0


def _is_in(address: int, ranges: Sequence[CodeRange]) -> bool:
    return any(place.begin <= address < place.end for place in ranges)
