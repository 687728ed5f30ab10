"""Judging a kernel log that somebody saved: no guest, no lab; with the module's .ko also the lines."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kmlab.common import folder_tree
from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.kernel.crash.crash import Crash
from kmlab.kernel.crash.scanner import Scanner
from kmlab.kernel.crash.source_lines import located
from kmlab.kernel.log.file_type import SAVE, Doubt, kind_of
from kmlab.kernel.log.records import ConsoleReader, Record
from kmlab.kernel.module.modinfo import ModInfo, parse_modinfo
from kmlab.kernel.symbols.elf import LARGEST_PRODUCTS
from kmlab.kernel.symbols.symbolizer import ModuleSymbols

_CHUNK = 1 << 20
_RELEASE = re.compile(r"(?:Not tainted|Tainted: [A-Z ]+?) +(\d[\w.+~-]{1,80}) #\d")
"""The kernel's release in a report's second line: print_tainted() and init_utsname() in lib/dump_stack.c."""


class Judged(NamedTuple):
    """What a log comes to."""

    crashes: tuple[Crash, ...]
    notes: tuple[str, ...]
    """Why there are no lines where there could be, or other ones; a sentence each."""
    source: Path | None = None
    """The folder of the sources that the lines are of."""


class _Build(NamedTuple):
    """One .ko."""

    file: Path
    symbols: ModuleSymbols
    info: ModInfo


def judge_file(file: str, module: Path | None = None, elsewhere: Sequence[Path] = ()) -> Judged:
    """The findings in a log ("-" is stdin); with the module's .ko, or a folder of them, also their lines.

    `elsewhere` are folders to look in where the module's own has no .ko. Of several builds of a module it takes the one
    that crashed, told by the sizes of its functions.
    """
    root = None if module is None or module.is_file() else PurePosixPath(module.resolve())
    builds = _builds(module, elsewhere, root) if module else {}
    found = _findings(file, frozenset(builds))
    source = (module if module.is_dir() else module.parent) if module else None
    crashes, notes, changed = [], dict.fromkeys(_strangers(found, builds)), dict[str, None]()
    for crash in found:
        chosen = {name: _chosen(crash, name, several) for name, several in builds.items()}
        images = {f"{name}.ko": build.symbols for name, build in chosen.items() if build}
        crashes.append(located(crash, images, root))
        notes |= dict.fromkeys(f"no lines: {known.problem}" for known in images.values() if known.problem)
        notes |= dict.fromkeys(note for name, several in builds.items() if (note := _doubt(crash, name, several)))
        build = chosen.get(crash.module or "")
        if source and build and (note := _change(source, crashes[-1].file, build.file)):
            changed[note] = None
    return Judged(tuple(crashes), (*notes, *changed), None if changed else source)


def _findings(file: str, own: frozenset[str]) -> list[Crash]:
    """What a log reports; an error where it is none. Without a single prefix it is all taken to be the kernel's."""
    reader, scanner, bare, doubt = ConsoleReader(), Scanner(own), Scanner(own), Doubt()

    def take(records: list[Record]) -> None:
        scanner.feed(records)
        if not doubt.prefixed:
            doubt.hear(records)
        if not doubt.prefixed:
            bare.feed(record._replace(facility=0) for record in records)

    try:
        with open(file, "rb") if file != "-" else open(sys.stdin.fileno(), "rb", closefd=False) as log:
            chunk = log.read(_CHUNK)
            if other := kind_of(chunk):
                raise _no_log(file, f"it is {other.what}", other.remedy)
            while chunk:
                take(reader.feed(chunk))
                chunk = log.read(_CHUNK)
    except OSError as error:
        raise ConfigError(f"{printable(file)}: cannot read this log: {error.strerror}") from None
    take(reader.close())
    right = scanner if doubt.prefixed else bare
    right.close()
    if not right.crashes and doubt.reason:
        raise _no_log(file, doubt.reason, SAVE)
    return right.crashes


def _no_log(file: str, reason: str, remedy: str) -> ConfigError:
    name, place = ("stdin", "FILE") if file == "-" else (file, shlex.quote(file))
    return ConfigError(f"{printable(name)}: this is no kernel log: {reason}", printable(remedy.replace("{}", place)))


def _change(source: Path, file: str | None, built: Path) -> str | None:
    """That the source with the line to blame is younger than what was built of it."""
    place = source / file if file else source
    if place.is_file() and place.stat().st_mtime > built.stat().st_mtime:
        return f"{printable(str(place))} was changed after {printable(str(built))} was built of it"
    return None


def _builds(module: Path, elsewhere: Sequence[Path], root: PurePosixPath | None) -> dict[str, list[_Build]]:
    """The .ko files by the kernel's name of their module."""
    folders = (module, *elsewhere)
    files = [module] if not module.is_dir() else next((f for d in folders if (f := _modules_below(d))), [])
    if not files:
        raise ConfigError(
            f"{printable(str(module))}: no .ko here",
            "build the module first, with debug information; or give the .ko that crashed",
        )
    found: dict[str, list[_Build]] = {}
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
        found.setdefault(info.name, []).append(build)
    return found


def _modules_below(folder: Path) -> list[Path]:
    """All .ko files beneath a folder, however deep."""
    try:
        with folder_tree.opened(folder) as top:
            walked = folder_tree.walk(top, unreadable=lambda *_: None)
            return sorted(folder / f.path for f in walked if f.path and f.name.endswith(".ko"))
    except OSError:
        return []


def _chosen(crash: Crash, name: str, builds: Iterable[_Build]) -> _Build | None:
    """The build that crashed, the one with lines before others."""
    fitting = [build for build in builds if _misfit(crash, name, build) is None]
    return next((build for build in fitting if build.symbols.has_lines), next(iter(fitting), None))


def _misfit(crash: Crash, name: str, build: _Build) -> str | None:
    """What tells that this build is not the one that crashed: another kernel's, or functions of other sizes."""
    said = _RELEASE.search(crash.text)
    if said and build.info.release and said[1] != build.info.release:
        return f"it was built for the kernel {printable(build.info.release, 60)}, and the log is of {said[1]}"
    for frame in crash.frames:
        if frame.module == name and frame.size is not None and not build.symbols.knows(frame.function, frame.size):
            return f"it has no {printable(frame.function, 80)}() of 0x{frame.size:x} bytes"
    return None


def _doubt(crash: Crash, name: str, builds: Sequence[_Build]) -> str | None:
    """Why this finding has no lines of that module, if it is in there at all."""
    if not any(frame.module == name for frame in crash.frames):
        return None
    chosen = _chosen(crash, name, builds)
    file = printable(str((chosen or builds[0]).file))
    if (chosen is None and all(not build.info.has_symbols for build in builds)) or (
        chosen and not chosen.symbols.has_lines
    ):
        return f"{file} was stripped of its debug information: for the lines, give the .ko as make left it"
    if chosen is None:
        several = f" nor is any of the {len(builds) - 1} others" if len(builds) > 1 else ""
        return (
            f"{file} is not the {name} that crashed{several}: {_misfit(crash, name, builds[0])}; "
            "for the lines, give the .ko of that very build"
        )
    return None


def _strangers(crashes: Sequence[Crash], builds: Mapping[str, object]) -> list[str]:
    """That the log is about modules which were not given."""
    others = dict.fromkeys(c.module for c in crashes if c.module and c.module not in builds)
    if not builds or not others or any(f.module in builds for c in crashes for f in c.frames):
        return []
    given = ", ".join(printable(name, 60) for name in builds)
    return [f"the log is about the module {', '.join(printable(o, 60) for o in others)}, and this is {given}"]
