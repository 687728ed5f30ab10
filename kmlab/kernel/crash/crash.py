"""One bug, as the kernel told it: the value that a log comes to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kmlab.kernel.crash.patterns import traits_of
from kmlab.kernel.crash.stack_trace import Frame, Section
from kmlab.kernel.log.records import Record


@dataclass(frozen=True, slots=True)
class Crash:
    """One bug, as the kernel told it."""

    kind: str
    """The outcome it means: panic, oops, warning or hang; of a saved log also `load-refused`."""
    class_: str
    """The fine kind, such as `null-dereference` or `lockdep-circular`: see `kmlab.kernel.crash.patterns`."""
    title: str
    """One line, the same for this bug in every run: no address, process or CPU in it."""
    function: str | None
    """The guilty one, as its author wrote it."""
    module: str | None
    file: str | None
    """Only where the kernel itself named it, as compiled; else for whoever has the debug information."""
    line: int | None
    task: str | None
    pid: int | None
    cpu: int | None
    frames: tuple[Frame, ...]
    """Innermost first."""
    sections: tuple[Section, ...]
    """The report's other stacks: who allocated, who freed, other CPUs."""
    text: str
    """The report's lines, capped."""
    fatal: bool
    """The kernel panicked over it."""
    truncated: bool
    """Its end, its trace or lines within are missing."""
    fingerprint: str
    """The same for the same bug in another run and on another kernel."""
    time: float | None
    """Seconds since boot of its first line."""
    reason: str | None = None
    """Why, with the remedy, where the title does not say it: of a load that was refused."""

    @property
    def deadly(self) -> bool:
        """Whether the task that ran into it was killed."""
        return self.kind in ("oops", "panic") and "deadly" in self.traits

    @property
    def traits(self) -> frozenset[str]:
        """What is true of all findings of its class: keys of CLASS_TRAITS in `kmlab.kernel.crash.patterns`."""
        return traits_of(self.class_)

    def beside(self, section: Section) -> Crash:
        """Return the same finding with one more stack beside its own, unless it has that, or many."""
        if section in self.sections or len(self.sections) >= _MAX_BESIDE:
            return self
        return replace(self, sections=(*self.sections, section))


def lockdep_off(crashes: Iterable[Crash]) -> str | None:
    """Return a note if lockdep turned itself off with one of these findings (debug_locks_off())."""
    first = next((crash for crash in crashes if "blinds" in crash.traits), None)
    if first is None:
        return None
    return f"lockdep is off since its report ({first.title}): it finds no other bug of locks until the next boot"


def benign_note(crash: Crash) -> str:
    """Return a note about a report that is no bug of a module's."""
    return f"not a bug of a module: {crash.title}, which comes of messages that kmemleak printed"


def outcome_of(crash: Crash) -> str:
    """Return what a run that ended in this crash is called in its result."""
    return "panic" if crash.fatal else crash.kind


def foreign_modules(lines: Iterable[str]) -> list[str]:
    """Return the modules from outside of the kernel's tree in a report's list, which may have several lines.

    `(O)` marks them, and `(P)` those of another licence (module_flags_taint()).
    """
    found: list[str] = []
    listing = False
    for line in lines:
        listing = line.startswith("Modules linked in") or (listing and bool(_MODULES.fullmatch(line)))
        if listing:
            found += _FOREIGN.findall(line)
    return found


def unexpected_reboot(record: Record) -> Crash:
    """Make the finding of a kernel that reboots and does not say why."""
    return Crash(
        kind="panic",
        class_="unexpected-reboot",
        title="unexpected reboot",
        function=None,
        module=None,
        file=None,
        line=None,
        task=None,
        pid=None,
        cpu=None,
        frames=(),
        sections=(),
        text=record.text,
        fatal=True,
        truncated=False,
        fingerprint="unexpected-reboot",
        time=record.time,
    )


def fingerprint(class_: str, title: str, guilty: Frame | None, frames: tuple[Frame, ...]) -> str:
    """Return what it is called in every run and on every kernel."""
    parts = [class_]
    if guilty is None:
        parts.append(title)
    elif guilty.module is None or guilty not in frames:
        parts += [guilty.module or "", guilty.name]
    else:
        names = [f.name for f in frames if f.reliable and f.module == guilty.module]
        parts += [guilty.module, *dict.fromkeys(names)] if names else [guilty.module, guilty.name]
    return fingerprint_of(*parts)


def fingerprint_of(*parts: str) -> str:
    """Return the same for the same parts."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


_MAX_BESIDE = 16
_FOREIGN = re.compile(r"([\w-]{1,64})\([A-Z+-]{0,12}[OP][A-Z+-]{0,12}\)")
_MODULES = re.compile(r"(?: {0,8}[\w-]{1,64}(?:\([A-Z+-]{1,12}\))?(?= |$)){1,200} {0,4}(?:\[last unloaded.*)?")
"""A line that has nothing but names of modules."""
