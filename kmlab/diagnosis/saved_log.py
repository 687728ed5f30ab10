"""Judge a saved kernel log, without a guest or a lab; with the module's .ko, find source lines, too."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, NamedTuple, cast

from kmlab.common import folder_tree
from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.kernel.crash.crash import Crash, benign_note, fingerprint_of, foreign_modules, lockdep_off
from kmlab.kernel.crash.parser.scanner import Scanner
from kmlab.kernel.crash.paste import Layout, Rejoiner, Survey, Unread, is_suspicious, is_wrapped, runs_backwards, turned
from kmlab.kernel.crash.source_lines import located
from kmlab.kernel.log.file_type import SAVE, Doubt, kind_of
from kmlab.kernel.log.records import ConsoleReader, Record
from kmlab.kernel.module.load_errors import (
    RefusedLoad,
    find_refused_loads,
    is_of_insmod,
    may_be_refusal,
    may_refuse,
    unknown_key_note,
)
from kmlab.kernel.module.modinfo import ModInfo, parse_modinfo
from kmlab.kernel.symbols.elf import LARGEST_PRODUCTS
from kmlab.kernel.symbols.symbolizer import ModuleSymbols

_CHUNK = 1 << 19
_FIRST_WORD = 10.0
"""Seconds to wait for the first byte of a pipe."""
_LARGEST_PIPE = 1 << 30
"""The largest log that is read from a pipe, in bytes."""
_HEAD = 1 << 16
"""Bytes from which it is seen which way a log runs."""
_RELEASE = re.compile(r"(?:Not tainted|Tainted: [A-Z ]+?) +(\d[\w.+~-]{1,80}) #\d")
"""The kernel's release in a report's second line: print_tainted() and init_utsname() in lib/dump_stack.c."""


class JudgedLog(NamedTuple):
    """The findings in a saved log."""

    crashes: tuple[Crash, ...]
    notes: tuple[str, ...]
    """Why source lines are missing or may be wrong; a sentence each."""
    source: Path | None = None
    """The folder with the sources."""
    unread: Unread | None = None
    """The lines that look like a kernel's and could not be read."""


class _Build(NamedTuple):
    """One .ko file."""

    file: Path
    symbols: ModuleSymbols
    info: ModInfo


def judge_file(file: str, module: Path | None = None, elsewhere: Sequence[Path] = ()) -> JudgedLog:
    """Find the crashes in a log ("-" is stdin); with the module's .ko, or a folder of them, also their source lines.

    `elsewhere` are folders to search if the module's own has no .ko. If a module has several builds, use the one that
    crashed: the one whose function sizes match the log.
    """
    root = None if module is None or module.is_file() else PurePosixPath(module.resolve())
    builds = _builds(module, elsewhere, root) if module else {}
    findings, unread, how = _findings(file, frozenset(builds))
    source = (module if module.is_dir() else module.parent) if module else None
    crashes, changed = [], dict[str, None]()
    notes = dict.fromkeys((*_other_modules(findings, builds), *_bystanders(findings)))
    for crash in findings:
        chosen = {name: _best_build(crash, name, several) for name, several in builds.items()}
        images = {f"{name}.ko": build.symbols for name, build in chosen.items() if build}
        crashes.append(located(crash, images, root))
        notes |= dict.fromkeys(f"no lines: {each.problem}" for each in images.values() if each.problem)
        notes |= dict.fromkeys(
            note for name, several in builds.items() if (note := _missing_lines(crash, name, several))
        )
        build = chosen.get(crash.module or "")
        if source and build and (note := _newer_source(source, crashes[-1].file, build.file)):
            changed[note] = None
    if unread and (unread.report or not crashes):
        how.append(_unread_words(unread))
    return JudgedLog(tuple(crashes), (*how, *notes, *changed), None if changed else source, unread)


def _unread_words(unread: Unread) -> str:
    lines = f"{unread.lines} lines look" if unread.lines > 1 else "1 line looks"
    return f"{lines} like a kernel's and could not be read, the first: {printable(unread.first.strip(), 160)}"


class Heard(NamedTuple):
    """What reading a log gave."""

    crashes: list[Crash]
    doubt: str | None
    """Why this is no kernel log; None where it may be one."""
    lines: int
    survey: Survey
    refused: list[Crash]
    """Loads that the kernel refused."""
    prefixed: bool
    """Some line says itself who wrote it."""
    backwards: bool = False
    """The newest line came first."""
    benign: Sequence[Crash] = ()
    """Reports that are no bug of a module's."""
    note: str | None = None
    """What the kernel said of a signature, where nothing shows what came of it."""


def _findings(file: str, own: frozenset[str]) -> tuple[list[Crash], Unread | None, list[str]]:
    """Return what a log reports, what could not be read of it, and how it was read; ConfigError if it is no log."""
    try:
        with opened(file) as log:
            if other := kind_of(log.read(_CHUNK)):
                raise _no_log(file, f"it is {other.what}", other.remedy)
            heard = hear(log, own)
    except OSError as error:
        raise ConfigError(f"{printable(file)}: cannot read this log: {error.strerror}") from None
    unread = heard.survey.unread
    # A text that is no log may speak of one in a line or two.
    mostly = unread and (unread.report or unread.lines * 5 >= heard.lines)
    found = heard.crashes + heard.refused
    if not found and heard.doubt and not mostly:
        raise _no_log(file, heard.doubt, SAVE)
    off = lockdep_off([*heard.crashes, *heard.benign])
    how = [_BACKWARDS] if heard.backwards else []
    if heard.note and not heard.refused:
        how.append(heard.note)
    return found, unread, [*how, *map(benign_note, heard.benign), *([off] if off else [])]


_BACKWARDS = "the log runs backwards, newest line first: it was read from its end"


def hear(log: BinaryIO, own: frozenset[str] = frozenset()) -> Heard:
    """Read a log, more than once where that finds more: backwards, or with what somebody put before its lines."""
    log.seek(0)
    head = log.read(_HEAD)
    backwards, wrapped = runs_backwards(head), is_wrapped(head[: _HEAD // 4])
    heard = _hear_once(log, own, backwards, wrapped)
    layout = heard.survey.layout
    if layout is not None:
        # Where no line said who wrote it, all of them are the kernel's still.
        layout = layout._replace(bare=layout.bare or not heard.prefixed)
        again = _hear_once(log, own, backwards, wrapped, layout)
        heard = max(heard, again, key=_told)
    return heard


def _told(heard: Heard) -> tuple[int, int]:
    """Return how many findings say what was wrong, and how many there are."""
    plain = [crash for crash in heard.crashes if crash.class_ != "stack-dump"]
    return len(plain) + len(heard.refused), len(heard.crashes)


@contextlib.contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """Open a log that can be read more than once. Neither a device nor a pipe without a writer makes it wait."""
    # Without O_NONBLOCK, opening a pipe that has no writer blocks forever.
    handle = sys.stdin.fileno() if file == "-" else os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    with open(handle, "rb", buffering=0, closefd=file != "-"):
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if file != "-" and not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            raise _no_log(file, "it is a device or a socket", SAVE)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            with open(file, "rb") if file != "-" else open(handle, "rb", closefd=False) as log:
                yield log
            return
        with tempfile.SpooledTemporaryFile(max_size=64 * _CHUNK) as kept:
            _keep(handle, file, kept)
            kept.seek(0)
            yield cast(BinaryIO, kept)


def _keep(handle: int, file: str, kept: IO[bytes]) -> None:
    """Copy what comes out of a pipe, or out of a file of /proc."""
    size, pipe = 0, file != "-" and stat.S_ISFIFO(os.fstat(handle).st_mode)
    while select.select([handle], [], [], _FIRST_WORD if pipe and not size else None)[0]:
        try:
            chunk = os.read(handle, _CHUNK)
        except BlockingIOError:
            if pipe:
                continue
            return  # a file of /proc that has no more to say
        size += len(chunk)
        if size > _LARGEST_PIPE:
            raise _no_log(file, f"more than {_LARGEST_PIPE >> 20} MiB come out of it", SAVE)
        if not chunk and (size or not pipe):
            return
        if not chunk:
            break
        kept.write(chunk)
    raise _no_log(file, "nothing comes out of this pipe", SAVE)


def _hear_once(
    log: BinaryIO, own: frozenset[str], backwards: bool, wrapped: bool = False, layout: Layout | None = None
) -> Heard:
    """Read a log from its begin. Without a single prefix it is all taken to be the kernel's."""
    reader, rejoiner, doubt = ConsoleReader(pasted=True), Rejoiner(wrapped), Doubt()
    scanner, bare = Scanner(own), Scanner(own)
    survey, bare_survey = Survey(), Survey()
    refusals: list[tuple[bool, str]] = []

    def take(records: list[Record], suspicious: bool, refusing: bool, last: bool = False) -> None:
        if layout is not None:
            records = list(layout.apply(records))
        if refusing:
            refusals.extend((record.from_kernel, record.text) for record in records if may_be_refusal(record.text))
        joined = rejoiner.feed(records) if suspicious or wrapped else rejoiner.close() + records
        joined += rejoiner.close() if last else []
        scanner.feed(joined)
        if suspicious:
            survey.hear(joined)
        if not doubt.prefixed:
            doubt.hear(records)
        if not doubt.prefixed:
            bare.feed(record._replace(facility=0) for record in joined)
            if suspicious:
                bare_survey.hear(record._replace(facility=0) for record in joined)

    log.seek(0)
    chunks = iter([turned(log.read())]) if backwards else iter(lambda: log.read(_CHUNK), b"")
    # A log that is no flood is surveyed in any case, as nearly all are.
    first = before = True
    for chunk in chunks:
        suspicious = first or is_suspicious(chunk)
        # Its last line may have begun in the chunk before. No records are kept here while the next are read.
        take(reader.feed(chunk), suspicious or before, first or may_refuse(chunk))
        first, before = False, suspicious
    take(reader.close(), True, True, last=True)
    right, surveyed = (scanner, survey) if doubt.prefixed else (bare, bare_survey)
    right.close()
    said = [text for kernel, text in refusals if kernel or not doubt.prefixed or is_of_insmod(text)]
    loads = find_refused_loads(said)
    return Heard(
        right.crashes,
        doubt.reason,
        doubt.lines,
        surveyed,
        [_as_crash(load) for load in loads],
        doubt.prefixed,
        backwards,
        right.benign,
        unknown_key_note(said),
    )


def _as_crash(load: RefusedLoad) -> Crash:
    """Put a refused load among the findings of a log."""
    failure = load.failure
    about = {
        "vermagic": "it was built for another kernel",
        "symbol-version": f"it was built with another version of {failure.symbol}",
        "unknown-symbol": f"{failure.symbol or 'a symbol'} is not known",
        "namespace": f"the namespace of {failure.symbol} is not imported",
        "gpl-only": f"{failure.symbol} is for GPL modules only",
        "duplicate-symbol": f"{failure.symbol} is exported already",
        "signature": "its signature",
        "btf": "its type information is of another kernel",
        "relocation": "a relocation that does not fit",
        "format": "its file is no module for this kernel",
        "parameter": f"its parameter {failure.subject}",
        "dependency": f"the init of {failure.subject} never finished",
        "permission": "it was not permitted",
    }.get(failure.kind, failure.kind)
    return Crash(
        kind="load-refused",
        class_=failure.kind,
        title=printable(f"load of {load.module or 'a module'} refused: {about}", 300),
        function=None,
        module=load.module,
        file=None,
        line=None,
        task=None,
        pid=None,
        cpu=None,
        frames=(),
        sections=(),
        text=load.said,
        fatal=False,
        truncated=False,
        fingerprint=fingerprint_of("load-refused", failure.kind, load.module or "", failure.symbol or ""),
        time=None,
        reason=failure.reason,
    )


def _no_log(file: str, reason: str, remedy: str) -> ConfigError:
    name, place = ("stdin", "FILE") if file == "-" else (file, shlex.quote(file))
    return ConfigError(f"{printable(name)}: this is no kernel log: {reason}", printable(remedy.replace("{}", place)))


def _newer_source(source: Path, file: str | None, built: Path) -> str | None:
    """Return a note if the guilty source file is newer than the build."""
    place = source / file if file else source
    if place.is_file() and place.stat().st_mtime > built.stat().st_mtime:
        return f"{printable(str(place))} was changed after {printable(str(built))} was built of it"
    return None


def _builds(module: Path, elsewhere: Sequence[Path], root: PurePosixPath | None) -> dict[str, list[_Build]]:
    """Read the .ko files, by the kernel's name of their module."""
    folders = (module, *elsewhere)
    files = [module] if not module.is_dir() else next((f for d in folders if (f := _modules_below(d))), [])
    if not files:
        raise ConfigError(
            f"{printable(str(module))}: no .ko here",
            "build the module first, with debug information; or give the .ko that crashed",
        )
    builds: dict[str, list[_Build]] = {}
    left = LARGEST_PRODUCTS
    for file in files:
        try:
            with folder_tree.opened(file.parent) as folder:
                image = folder_tree.read_file(folder, file.name, left + 1, follow=True)
        except OSError as error:
            raise ConfigError(f"{printable(str(file))}: cannot read: {error.strerror}") from None
        if image is None:
            raise ConfigError(f"{printable(str(file))}: is no regular file", "give the .ko that crashed")
        left -= len(image)
        if left < 0:
            raise ConfigError(
                f"{printable(str(file))}: with it there are more than {LARGEST_PRODUCTS >> 20} MiB of modules",
                "give the one that crashed",
            )
        info = parse_modinfo(image, str(file))
        build = _Build(file, ModuleSymbols(image, str(file), root), info)
        builds.setdefault(info.name, []).append(build)
    return builds


def _modules_below(folder: Path) -> list[Path]:
    """Return all .ko files below a folder, however deep."""
    try:
        with folder_tree.opened(folder) as top:
            walked = folder_tree.walk(top, unreadable=lambda *_: None)
            return sorted(folder / f.path for f in walked if f.path and f.name.endswith(".ko"))
    except OSError:
        return []


def _best_build(crash: Crash, name: str, builds: Iterable[_Build]) -> _Build | None:
    """Return the build that crashed, preferably one with debug information."""
    fitting = [build for build in builds if _mismatch(crash, name, build) is None]
    return next((build for build in fitting if build.symbols.has_lines), next(iter(fitting), None))


def _mismatch(crash: Crash, name: str, build: _Build) -> str | None:
    """Return why this build is not the one that crashed: another kernel, or functions of other sizes."""
    release = _RELEASE.search(crash.text)
    if release and build.info.release and release[1] != build.info.release:
        return f"it was built for the kernel {printable(build.info.release, 60)}, and the log is of {release[1]}"
    for frame in crash.frames:
        if frame.module == name and frame.size is not None and not build.symbols.knows(frame.function, frame.size):
            return f"it has no {printable(frame.function, 80)}() of 0x{frame.size:x} bytes"
    return None


def _missing_lines(crash: Crash, name: str, builds: Sequence[_Build]) -> str | None:
    """Return why this finding has no source lines of that module, if the module is in it at all."""
    if not any(frame.module == name for frame in crash.frames):
        return None
    chosen = _best_build(crash, name, builds)
    file = printable(str((chosen or builds[0]).file))
    if (chosen is None and all(not build.info.has_symbols for build in builds)) or (
        chosen and not chosen.symbols.has_lines
    ):
        return f"{file} was stripped of its debug information: for the lines, give the .ko as make left it"
    if chosen is None:
        several = f" nor is any of the {len(builds) - 1} others" if len(builds) > 1 else ""
        return (
            f"{file} is not the {name} that crashed{several}: {_mismatch(crash, name, builds[0])}; "
            "for the lines, give the .ko of that very build"
        )
    return None


def _bystanders(crashes: Sequence[Crash]) -> list[str]:
    """Which modules from outside of the kernel's tree were loaded, where none of them is on a finding's stack."""
    notes = []
    for crash in crashes:
        loaded = dict.fromkeys(foreign_modules(crash.text.split("\n")))
        shown = {frame.module for frame in crash.frames} | {f.module for s in crash.sections for f in s.frames}
        if loaded and crash.module not in loaded and not shown & loaded.keys():
            names = ", ".join(printable(name, 60) for name in loaded)
            notes.append(f"{crash.title}: no module from outside of the kernel's tree is on its stack; loaded: {names}")
    return notes


def _other_modules(crashes: Sequence[Crash], builds: Mapping[str, object]) -> list[str]:
    """Return a note if the log is about other modules than the given ones."""
    others = dict.fromkeys(c.module for c in crashes if c.module and c.module not in builds)
    if not builds or not others or any(f.module in builds for c in crashes for f in c.frames):
        return []
    given = ", ".join(printable(name, 60) for name in builds)
    return [f"the log is about the module {', '.join(printable(o, 60) for o in others)}, and this is {given}"]
