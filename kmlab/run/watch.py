"""The loop of `kmlab watch`: on each save a run, on a guest that is restored first where it has to be.

What decides is not what was told of the save but what lies there afterwards: the folder as a build sees it, and
lab.yaml. So nothing that a build, an editor or git leaves beside the sources begins a run, and no save is lost.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kmlab.common.errors import CommandFailed, ConfigError, KmlabError, LabError
from kmlab.common.events import Deadline, Event, printable
from kmlab.config.lab import GuestSpec, Lab, Module
from kmlab.host import Host
from kmlab.host.process import command as programs
from kmlab.provision import lifecycle
from kmlab.run import parallel, run
from kmlab.run.build.make import check_folder
from kmlab.run.build.source_folder import Manifest, read_folder
from kmlab.run.result import RunResult

_ASIDE = re.compile(
    r"\.[^/]*\.sw[a-z]|[^/]*~|4913|\#[^/]*\#|\.\#[^/]*|\.goutputstream-\w+|[^/]*\.kate-swp|[^/]*___jb_(tmp|old)___"
)
"""What editors put beside a file for a while: vim and its probe 4913, emacs, GNOME, Kate, JetBrains."""
_MADE = re.compile(r"[^/]*\.(o|ko|mod|mod\.c|cmd|a)|\.[^/]*\.d|modules\.order|Module\.symvers")
"""What kbuild makes, where somebody calls make in the folder itself."""
_EXEC_PATIENCE = 60.0

Seen = tuple[Manifest | None, tuple[int, int, int] | None]
"""What a run would go by: the folder, None where it is gone, and lab.yaml."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is run, as lab.yaml has it now."""

    lab: Lab
    module: Module
    guests: Sequence[GuestSpec]
    most: int | None = None
    """So many guests at once; None: as the host can."""

    @property
    def source(self) -> Path:
        return self.lab.locate(self.module.source)


class WatchView(Protocol):
    """Who shows what happens."""

    def hear(self, event: Event) -> None:
        """Of a run that is on."""

    def begin(self, watched: Watched) -> None:
        """A run begins."""

    def verdict(self, result: RunResult) -> None: ...

    def said(self, line: str) -> None:
        """By the command that is run on each verdict."""

    def trouble(self, error: KmlabError) -> None:
        """What keeps a run from beginning, or a command that failed; the loop goes on."""

    def waiting(self, what: str) -> None: ...


class ChangeSource(Protocol):
    """What tells of saves: `host.saves`, or a fake."""

    def point(self, folder: Path, file: Path) -> None: ...

    def forget(self) -> None: ...

    @property
    def news(self) -> bool: ...

    def wait(self) -> None: ...


def watch(
    host: Host,
    look: Callable[[], Watched],
    options: run.Options,
    saves: ChangeSource,
    face: WatchView,
    command: str | None = None,
) -> None:
    """Run at once and then on each save, until interrupted; `command` is run by sh on each verdict.

    `look` reads lab.yaml. What is wrong with it or with the folder at the start is raised; later it is shown.
    """
    watched = look()
    check_folder(watched.source)
    before: Seen | None = None
    while True:
        saves.point(watched.source, watched.lab.path)
        saves.forget()
        now = seen(watched)
        if now == before:
            saves.wait()
            continue
        before = now
        try:
            watched = look()
            before = seen(watched)
            saves.point(watched.source, watched.lab.path)
            _round(host, watched, options, saves, face, command, before)
        except run.Outdated:
            before = None
            continue
        except KmlabError as error:
            if seen(watched) == before:
                face.trouble(error)
        face.waiting(_what_for(watched))


def seen(watched: Watched) -> Seen:
    """What a run would go by now."""
    try:
        found = read_folder(watched.source)
        manifest = {path: entry for path, entry in found.items() if not _beside_the_point(path)}
    except (ConfigError, OSError):
        manifest = None
    try:
        status = os.stat(watched.lab.path)
    except OSError:
        return manifest, None
    return manifest, (status.st_ino, status.st_size, status.st_mtime_ns)


def environment(result: RunResult) -> dict[str, str]:
    """What the command on a verdict is told. The words are a guest's: printable, and never part of the command."""
    crash = next(iter(result.crashes), None)
    error = next((d for d in result.diagnostics if d.severity == "error"), None)
    blamed = crash or (error if result.outcome == "build-failed" else None)
    told = {
        "OUTCOME": result.outcome,
        "OK": int(result.ok),
        "MODULE": result.module,
        "GUEST": result.guest,
        "TITLE": result.title,
        "FUNCTION": crash.function if crash else None,
        "FILE": blamed.file if blamed else None,
        "LINE": blamed.line if blamed else None,
        "SOURCE": result.folder,
        "RESULT": result.directory / "result.json" if result.directory else None,
    }
    return {f"KMLAB_{name}": "" if value is None else printable(str(value)) for name, value in told.items()}


def _round(
    host: Host,
    watched: Watched,
    options: run.Options,
    saves: ChangeSource,
    face: WatchView,
    command: str | None,
    before: Seen,
) -> None:
    """The newest source through each guest; Outdated once there is a newer one."""

    def outdated() -> bool:
        return saves.news and seen(watched) != before

    face.begin(watched)
    asked = dataclasses.replace(options, outdated=outdated, siblings=len(watched.guests))
    told = threading.Lock()

    def one(spec: GuestSpec, go_on: parallel.GoOn) -> None:
        result = run.run(host, watched.lab, spec, watched.module, asked, face.hear)
        with told:
            face.verdict(result)
            if command:
                _tell(command, result, face)
        if outdated():
            raise run.Outdated
        if not result.guest_survived and result.outcome != "error":
            # The next run needs it, and the person is reading.
            with lifecycle.guest_session(host, watched.lab, spec, face.hear):
                pass

    parallel.side_by_side(host, watched.lab, watched.guests, one, face.hear, most=watched.most, keep=True)


def _tell(command: str, result: RunResult, face: WatchView) -> None:
    try:
        programs.run(
            ["sh", "-c", command],
            deadline=Deadline(_EXEC_PATIENCE),
            environment=environment(result),
            on_line=face.said,
        )
    except CommandFailed as error:
        how = f"did not end within {_EXEC_PATIENCE:.0f} s" if error.code is None else f"ended with code {error.code}"
        face.trouble(LabError(f"--exec: `{command}` {how}"))


def _beside_the_point(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return bool(_ASIDE.fullmatch(name) or _MADE.fullmatch(name))


def _what_for(watched: Watched) -> str:
    place = printable(run.shown_source(watched.lab, watched.module))
    return f"a save in {place}" if watched.source.is_dir() else f"{place} to be there again"
