"""Show `kmlab watch`: on a terminal the last verdict, the progress and the kernel's log; elsewhere lines."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kmlab.cli.output import render
from kmlab.cli.output.progress import lines_written_by
from kmlab.common.errors import KmlabError
from kmlab.common.events import Event, EventSink, Finished, Note, Progress, Started, printable
from kmlab.diagnosis.console import Follower
from kmlab.provision import lifecycle
from kmlab.report.case_lines import case_lines
from kmlab.report.verdict_lines import evidence, finding_lines, headline
from kmlab.run.result import RunResult, document
from kmlab.run.watch import WatchTarget, WatchView

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType
    from rich.text import Text

_GLANCE = 0.1
"""Seconds between two checks for something new to draw; the clock changes once a second."""
_NOTES = 6
_LOG = 400
"""Lines kept for a taller window."""


@contextlib.contextmanager
def open_view(*, as_json: bool, verbose: bool = False) -> Iterator[WatchView]:
    """Yield the screen if stdout is a terminal that can be redrawn, else lines; JSON is always lines."""
    if not as_json and os.isatty(1):
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_dumb_terminal:
            with Screen(console, verbose) as screen, lines_written_by(screen.program):
                yield screen
            return
    yield Lines(render.in_lines(), as_json, verbose)


class Lines:
    """Print one verdict after another on stdout, and everything else on stderr."""

    def __init__(self, events: EventSink, as_json: bool, verbose: bool = False) -> None:
        self.hear = events
        self._json = as_json
        self._verbose = verbose

    def begin(self, watched: WatchTarget) -> None:
        pass

    def verdict(self, result: RunResult) -> None:
        render.document(document([result]), line=True) if self._json else render.verdict(result, verbose=self._verbose)

    def command_output(self, line: str) -> None:
        self.hear(Note("--exec", line))

    def show_error(self, error: KmlabError) -> None:
        if self._json:
            render.document(render.error_document(error), line=True)
        for line in render.error_lines(error):
            self.hear(Note("kmlab", line))

    def waiting(self, what: str) -> None:
        self.hear(Note("kmlab", f"waiting for {what}"))


class Screen:
    """Use the whole terminal; afterwards print the last verdicts on the ordinary screen."""

    def __init__(self, console: Any, verbose: bool = False) -> None:
        from rich.live import Live

        self.console = console
        self._verbose = verbose
        self._lock = threading.Lock()
        self._results: dict[str, RunResult] = {}
        self._verdict: list[tuple[str, str]] = []
        """Lines and their styles."""
        self._count = 0
        self._when = ""
        self._on: dict[str, tuple[float, str]] = {}
        """Current waits: the start of each, and its last detail."""
        self._notes: deque[tuple[str, str]] = deque(maxlen=_NOTES)
        self._followers: dict[tuple[str, Path], Follower] = {}
        self._log: deque[str] = deque(maxlen=_LOG)
        self._live = Live(get_renderable=self.draw, console=console, screen=True, auto_refresh=False)
        self._changed = threading.Event()
        self._over = threading.Event()
        self._painter = threading.Thread(target=self._paint, daemon=True, name="screen")

    def __enter__(self) -> Screen:
        self._live.start(refresh=True)
        self._painter.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._painter.join()
        self._live.stop()
        for result in self._results.values():
            render.verdict(result, verbose=self._verbose)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        with self._lock:
            yield
        self._changed.set()

    def _paint(self) -> None:
        painted = 0.0
        while not self._over.wait(_GLANCE):
            if self._read_log() or self._changed.is_set() or time.monotonic() - painted >= 1:
                self._changed.clear()
                painted = time.monotonic()
                self._live.refresh()

    def _read_log(self) -> bool:
        """Read the consoles, and return whether a kernel printed anything."""
        followers, seen = self._followers, False
        for (name, _), follower in followers.items():
            prefix = f"{name}: " if len(followers) > 1 else ""
            for record in follower.read():
                self._log.append(prefix + render.record_line(record))
                seen = True
        return seen

    # --- what happens ---

    def begin(self, watched: WatchTarget) -> None:
        files = lifecycle.lab_files(watched.lab)
        named = [(spec.name, files.guest(spec.name).console) for spec in watched.guests]
        with self._change():
            self._followers = {
                (name, console): self._followers.get((name, console)) or Follower(console, at_end=True)
                for name, console in named
            }
            self._notes.clear()
            self._on = {}
            if self._log:
                self._log.append(f"── a run at {time.strftime('%H:%M:%S')} ──")
            self._results = {name: result for name, result in self._results.items() if name in dict(named)}

    def hear(self, event: Event) -> None:
        with self._change():
            if isinstance(event, Note):
                self._notes.append((f"{event.subject}: {event.text}", ""))
                return
            key = f"{event.subject}: {event.what}"
            if isinstance(event, Started):
                self._on[key] = time.monotonic(), ""
            elif isinstance(event, Progress):
                began, _ = self._on.get(key, (time.monotonic(), ""))
                self._on[key] = began, event.detail
            elif isinstance(event, Finished):
                self._on.pop(key, None)

    def verdict(self, result: RunResult) -> None:
        with self._change():
            self._results[result.guest] = result
            self._count += 1
            self._when = time.strftime("%H:%M:%S")
            # Read the source lines now: after the next save they would not fit the verdict.
            self._verdict = [
                (headline(each), "bold green" if each.ok else "bold red") for each in self._results.values()
            ]
            self._verdict += [(line, "") for line in case_lines(result.tests, only_bad=True)]
            self._verdict += [(line, "") for line in finding_lines(result, frames=4)]
            self._verdict += [(line, "") for line in evidence(result)]

    def command_output(self, line: str) -> None:
        self.hear(Note("--exec", line))

    def program(self, line: str) -> None:
        """Show the line about a program that has ended."""
        with self._change():
            self._notes.append((line, ""))

    def show_error(self, error: KmlabError) -> None:
        with self._change():
            self._on = {}
            self._notes.extend((line, "red") for line in render.error_lines(error))

    def waiting(self, what: str) -> None:
        with self._change():
            self._on = {f"waiting for {what}": (time.monotonic(), "")}

    # --- the picture ---

    def draw(self) -> RenderableType:
        from rich.layout import Layout
        from rich.text import Text

        with self._lock:
            width, height = self.console.size
            running = not any(what.startswith("waiting") for what in self._on)
            old = " dim" if running and self._count else ""
            verdict = self._lines([(text, style + old) for text, style in self._verdict or [("no verdict yet", "")]])
            status = [self._rule(width), *self._lines(list(self._notes))[-_NOTES:]]
            room = max(1, height - len(status) - max(3, height // 4))
            top = Text("\n").join(verdict[:room])
            middle = Text("\n").join(status)
            rest = max(1, height - min(len(verdict), room) - len(status))
            bottom = Text("\n".join(printable(line, width) for line in list(self._log)[-rest:]))
        layout = Layout()
        layout.split_column(
            Layout(top, size=min(len(verdict), room)), Layout(middle, size=len(status)), Layout(bottom, size=rest)
        )
        return layout

    def _rule(self, width: int) -> Text:
        """Return the line that names the current waits and their durations."""
        from rich.text import Text

        now = time.monotonic()
        waits = [f"{what} {now - began:.0f} s  {detail}".rstrip() for what, (began, detail) in self._on.items()]
        count = f"verdict {self._count} at {self._when}" if self._count else ""
        waiting = printable(" | ".join(waits) or "a run is on", max(1, width - len(count) - 8))
        line = f"── {waiting} ".ljust(width - len(count) - 4, "─")
        return Text((f"{line} {count} ──" if count else line.ljust(width, "─"))[:width], style="bold")

    def _lines(self, styled: Sequence[tuple[str, str]]) -> list[Text]:
        """Wrap styled lines to the width of the window."""
        from rich.text import Text

        width = self.console.width
        return [
            wrapped
            for text, style in styled
            for wrapped in Text(printable(text).expandtabs(8), style=style.strip()).wrap(self.console, width)
        ]
