"""The loop of `kmlab watch`: on each save, run the module again, in a guest that is restored first if necessary.

After each save kmlab compares the content: the folder as a build sees it, and lab.yaml. So no file that a build, an
editor or git writes next to the sources starts a run, and no save is lost.
"""

from __future__ import annotations

import contextlib
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
from kmlab.run.build.source_tree import find_tree
from kmlab.run.result import RunResult

_EDITOR_FILES = re.compile(
    r"\.[^/]*\.sw[a-z]|[^/]*~|4913|\#[^/]*\#|\.\#[^/]*|\.goutputstream-\w+|[^/]*\.kate-swp|[^/]*___jb_(tmp|old)___"
)
"""Temporary files of editors: vim and its probe 4913, emacs, GNOME, Kate, JetBrains."""
_BUILD_FILES = re.compile(r"[^/]*\.(o|ko|mod|mod\.c|cmd|a)|\.[^/]*\.d|modules\.order|Module\.symvers")
"""Files that kbuild makes if somebody runs make in the folder itself."""
_EXEC_PATIENCE = 60.0

State = tuple[Manifest | None, tuple[int, int, int] | None]
"""The state that a run uses: the folder, None if it does not exist, and lab.yaml."""


@dataclass(frozen=True, slots=True)
class WatchTarget:
    """What the loop runs, as lab.yaml defines it now."""

    lab: Lab
    module: Module
    guests: Sequence[GuestSpec]
    limit: int | None = None
    """The most guests at once; None: as many as the host can hold."""

    root: Path | None = None
    """The folder to send, if the command names one."""

    @property
    def source(self) -> Path:
        return self.lab.locate(self.module.source)

    @property
    def sent(self) -> Path:
        """The folder that is sent: the source, or a larger one that holds what it needs."""
        with contextlib.suppress(KmlabError, OSError):
            return find_tree(self.lab, self.module, run.Options(root=self.root)).root
        return self.source


class WatchView(Protocol):
    """Shows what happens."""

    def hear(self, event: Event) -> None:
        """Show an event of the current run."""

    def begin(self, watched: WatchTarget) -> None:
        """Show that a run begins."""

    def verdict(self, result: RunResult) -> None: ...

    def command_output(self, line: str) -> None:
        """Show a line that the command for each verdict printed."""

    def show_error(self, error: KmlabError) -> None:
        """Show what keeps a run from beginning, or a command that failed; the loop continues."""

    def waiting(self, what: str) -> None: ...


class ChangeSource(Protocol):
    """Reports saves: `host.process.file_watch`, or a fake."""

    def point(self, folder: Path, file: Path) -> None: ...

    def forget(self) -> None: ...

    @property
    def news(self) -> bool: ...

    def wait(self) -> None: ...


def watch(
    host: Host,
    read_lab: Callable[[], WatchTarget],
    options: run.Options,
    saves: ChangeSource,
    view: WatchView,
    command: str | None = None,
) -> None:
    """Run now and again on each save, until interrupted; sh runs `command` after each verdict.

    `read_lab` reads lab.yaml. At the start, raise errors in it or in the folder; later, show them.
    """
    watched = read_lab()
    check_folder(watched.source, watched.module.prepare)
    before: State | None = None
    while True:
        saves.point(watched.sent, watched.lab.path)
        saves.forget()
        now = current_state(watched)
        if now == before:
            saves.wait()
            continue
        before = now
        try:
            watched = read_lab()
            before = current_state(watched)
            saves.point(watched.sent, watched.lab.path)
            _run_once(host, watched, options, saves, view, command, before)
        except run.Outdated:
            before = None
            continue
        except KmlabError as error:
            if current_state(watched) == before:
                view.show_error(error)
        view.waiting(_awaited(watched))


def current_state(watched: WatchTarget) -> State:
    """Return the state that a run would use now."""
    try:
        manifest_of_all = read_folder(watched.sent)
        manifest = {path: entry for path, entry in manifest_of_all.items() if not _is_ignored(path)}
    except (ConfigError, OSError):
        manifest = None
    try:
        status = os.stat(watched.lab.path)
    except OSError:
        return manifest, None
    return manifest, (status.st_ino, status.st_size, status.st_mtime_ns)


def environment(result: RunResult) -> dict[str, str]:
    """Return the variables for the command after a verdict: printable, because parts come from the guest."""
    crash = next(iter(result.crashes), None)
    error = next((d for d in result.diagnostics if d.severity == "error"), None)
    location = crash or (error if result.outcome == "build-failed" else None)
    variables = {
        "OUTCOME": result.outcome,
        "OK": int(result.ok),
        "MODULE": result.module,
        "GUEST": result.guest,
        "TITLE": result.title,
        "FUNCTION": crash.function if crash else None,
        "FILE": location.file if location else None,
        "LINE": location.line if location else None,
        "SOURCE": result.folder,
        "RESULT": result.directory / "result.json" if result.directory else None,
    }
    return {f"KMLAB_{name}": "" if value is None else printable(str(value)) for name, value in variables.items()}


def _run_once(
    host: Host,
    watched: WatchTarget,
    options: run.Options,
    saves: ChangeSource,
    view: WatchView,
    command: str | None,
    before: State,
) -> None:
    """Run the newest source in each guest. Raise Outdated if there is a newer one."""

    def outdated() -> bool:
        return saves.news and current_state(watched) != before

    view.begin(watched)
    run_options = dataclasses.replace(options, outdated=outdated, siblings=len(watched.guests))
    lock = threading.Lock()

    def one(spec: GuestSpec, may_continue: parallel.MayContinue) -> None:
        result = run.run(host, watched.lab, spec, watched.module, run_options, view.hear)
        with lock:
            view.verdict(result)
            if command:
                _run_command(command, result, view)
        if outdated():
            raise run.Outdated
        if not result.guest_survived and result.outcome != "error":
            # The next run needs the guest; restore it while the user reads the verdict.
            with lifecycle.guest_session(host, watched.lab, spec, view.hear):
                pass

    parallel.run_in_parallel(host, watched.lab, watched.guests, one, view.hear, limit=watched.limit, keep=True)


def _run_command(command: str, result: RunResult, view: WatchView) -> None:
    try:
        programs.run(
            ["sh", "-c", command],
            deadline=Deadline(_EXEC_PATIENCE),
            environment=environment(result),
            on_line=view.command_output,
        )
    except CommandFailed as error:
        how = f"did not end within {_EXEC_PATIENCE:.0f} s" if error.code is None else f"ended with code {error.code}"
        view.show_error(LabError(f"--exec: `{command}` {how}"))


def _is_ignored(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return bool(_EDITOR_FILES.fullmatch(name) or _BUILD_FILES.fullmatch(name))


def _awaited(watched: WatchTarget) -> str:
    place = printable(run.shown_source(watched.lab, watched.module))
    return f"a save in {place}" if watched.source.is_dir() else f"{place} to exist again"
