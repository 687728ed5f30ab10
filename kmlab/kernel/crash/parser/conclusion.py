"""From a report that was read to its finding: what it says, who is to blame, whether all of it is there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kmlab.kernel.crash.crash import Crash, fingerprint
from kmlab.kernel.crash.parser.report import Report
from kmlab.kernel.crash.parser.report_progress import UNRELATED
from kmlab.kernel.crash.stack_trace import Frame, Section, blame, is_helper, is_no_bug
from kmlab.kernel.crash.unmapped_code import vanished


def is_of_kmemleak_s_messages(report: Report) -> bool:
    """Whether lockdep complains of the locks of kmemleak's own messages, which is no bug of anybody's module."""
    return report.subject.is_("lockdep") and report.locks.are_kmemleak_s


def conclude(report: Report, own: frozenset[str], foreign: frozenset[str] = frozenset()) -> Crash | None:
    """Return the finding, or None when it was only a line that looked like one.

    `own` are the modules under test, `foreign` those from outside of the kernel's tree.
    """
    if _is_empty(report):
        return None
    return find(report, own, foreign)


def find(report: Report, own: frozenset[str], foreign: frozenset[str] = frozenset()) -> Crash:
    """Return what the report says, be it a finding or not."""
    subject, who = report.subject, report.circumstances
    shape = subject.header.shape
    named = report.named.by_worth(of_work="work" in shape.traits)
    frames, sections = report.stacks.told(report.locks.earlier)
    if not frames and named:
        frames = (named[0],)
    class_, title = subject.checked(frames[0] if frames else None)
    frames, jumped = _settled(report, class_, frames)
    sections = tuple(_named_task(report, section) for section in sections)
    # Where it jumped to is no place of a program: whoever called is to blame.
    called = frames[1:] if jumped and len(frames) > 1 else frames
    blamed = blame(called, sections, own, hang=shape.kind == "hang", named=named, suspects=foreign)
    guilty = _pronounced(report, named, frames, blamed) or blamed
    module = guilty.module if guilty else subject.header.module
    gone = not (guilty and guilty.module) and _in_unloaded(who.unloaded, frames, own)
    if gone:
        guilty, module, title = None, who.unloaded, f"{title} in unloaded module {who.unloaded}"
    elif guilty and guilty.function.startswith("0x"):
        guilty = None  # a kernel without names of functions knows the module all the same
        title = f"{title} in module {module}" if module else title
    elif guilty:
        title = f"{title} in {guilty.name}"
    file, line = (None, None) if gone else _place(report, guilty, frames)
    told = f"{title} {file}:{line}" if guilty is None and file else title
    return Crash(
        kind="panic" if report.progress.fatal else shape.kind,
        class_=class_,
        title=title,
        function=guilty.name if guilty else None,
        module=module,
        file=file,
        line=line,
        task=who.task,
        pid=who.pid,
        cpu=who.cpu,
        frames=frames,
        sections=sections,
        text=str(report.text),
        fatal=report.progress.fatal,
        truncated=_is_truncated(report),
        fingerprint=fingerprint("hang" if shape.kind == "hang" else class_, told, guilty, frames),
        time=report.progress.time,
    )


def _named_task(report: Report, section: Section) -> Section:
    """Return the section with the name of its task, where that is the one that the report is about."""
    who = report.circumstances
    return section._replace(task=who.task) if section.pid is not None and section.pid == who.pid else section


def _is_empty(report: Report) -> bool:
    """Whether it only looks like a report: a module's own words, or a stack that somebody asked for."""
    subject, progress, frames = report.subject, report.progress, report.stacks.frames
    if subject.is_("placed") and not frames:
        return report.leveled
    if progress.lost and progress.whole and not frames:
        return False  # nothing was saved but its end
    if subject.is_("provisional"):
        return not report.stacks.shows_bug or any(map(is_no_bug, frames))
    tracking = is_of_kmemleak_s_messages(report)
    if progress.lost or "line" in subject.header.shape.traits or tracking:
        return not progress.lost and tracking
    if not progress.passed and (progress.read_on or progress.quiet < UNRELATED):
        return False
    if subject.kind == "panic":
        # A kernel that has panicked says nothing else any more.
        return not progress.whole and not any(frame.name in ("panic", "vpanic") for frame in frames)
    # Somebody may have saved nothing but first lines; a console that tells the levels tells all.
    return progress.read_on == 0 and not progress.fatal and report.leveled


def _is_truncated(report: Report) -> bool:
    shape, progress = report.subject.header.shape, report.progress
    return (
        progress.lost
        or (shape.ends and not progress.whole and not progress.fatal)
        or (shape.kind == "panic" and not progress.whole)
        or (shape.traced and not report.stacks.shows_bug)
    )


def _settled(report: Report, class_: str, frames: tuple[Frame, ...]) -> tuple[tuple[Frame, ...], bool]:
    """Return the frames with the address of a trap, which is that of the next instruction, as one after a call.

    And without a name for code that had gone; and whether the CPU jumped to where there is none.
    """
    jumped = report.circumstances.jumped
    gone = vanished(class_, frames[0], report.text.lines) if frames else None
    if gone is not None:
        return (gone, *frames[1:]), True
    if class_ == "int3" and frames and frames[0].exact:
        return (frames[0]._replace(exact=False), *frames[1:]), jumped
    return frames, jumped


def _pronounced(report: Report, named: Sequence[Frame], frames: Sequence[Frame], blamed: Frame | None) -> Frame | None:
    """Return the function that is guilty whatever the trace says, as the report says so itself."""
    told = report.subject.told
    traits = report.subject.header.shape.traits | (told.traits if told else set())
    if not named or not traits & {"names", "work", "holds"}:
        return None
    word = named[0]
    if "work" in traits and word is not report.named.working:
        return None
    if word.module is None and word.offset is None and blamed:
        # It was inlined in what the trace shows of that module, perhaps.
        word = word._replace(module=blamed.module)
    return next((frame for frame in frames if frame.name == word.name), word)


def _in_unloaded(unloaded: str | None, frames: Sequence[Frame], own: frozenset[str]) -> bool:
    """Whether it is about code or memory of a module that is gone: a timer or a work item that outlived it."""
    if not unloaded or (own and unloaded not in own) or not frames:
        return False
    if any(frame.reliable and frame.name == "free_module" for frame in frames):
        return not any(frame.module for frame in frames)  # what it found is in the memory of that module
    nowhere = frames[0].exact and re.match(r"0xf{3,}[0-9a-f]{3,}$", frames[0].function)
    return bool(nowhere) and not any(f.module for f in frames if f.reliable)


def _place(report: Report, guilty: Frame | None, frames: Sequence[Frame]) -> tuple[str | None, int | None]:
    """Return file and line, where the log has them."""
    subject = report.subject
    file, line = (subject.file, subject.line) if _says_where(report, guilty, frames) else (None, None)
    if guilty and guilty.file and (file is None or guilty.own):
        return guilty.file, guilty.line
    return file, line


def _says_where(report: Report, guilty: Frame | None, frames: Sequence[Frame]) -> bool:
    """Whether the place in the first line is in the guilty function, not in the check that it failed."""
    subject = report.subject
    if subject.file is None or guilty is None:
        return subject.file is not None
    if subject.told and subject.told.file:
        return True
    if subject.header.symbol:
        return subject.header.symbol.name == guilty.name
    if frames and frames[0].exact:
        return frames[0].name == guilty.name
    plain = next((f for f in frames if f.reliable and not is_helper(f)), None)
    return plain is not None and plain.name == guilty.name
