"""Watch a folder and lab.yaml for changes with watchfiles (inotify(7)).

An inotify watch follows the folder that existed when it began. Twice a second this file therefore checks whether the
folder was deleted, renamed or recreated, and then watches the new one. lab.yaml is checked as often, not watched,
because many unrelated files may change next to it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from kmlab.common.errors import LabError
from kmlab.common.events import printable

_POLL_SECONDS = 0.5
"""Seconds between two checks of what inotify does not report."""
_SAVE_GAP_MS = 50
"""Milliseconds without a change that end a save of several files."""
_SAVE_LIMIT_MS = 1600
"""Milliseconds after which a change is reported although more changes follow."""


class FileWatcher:
    """Report changes of a folder and a file. A change may be irrelevant, so callers compare the content."""

    def __init__(self, poll_seconds: float = _POLL_SECONDS) -> None:
        self._poll_seconds = poll_seconds
        self._news = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched: tuple[Path, Path] | None = None
        self._failure: LabError | None = None

    def point(self, folder: Path, file: Path) -> None:
        """Watch `folder` with everything below it, and one file, instead of the previous ones."""
        if self._watched == (folder, file):
            return
        self.close()
        self._watched, self._over = (folder, file), threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(folder, file, self._over), daemon=True, name="saves")
        self._thread.start()

    def forget(self) -> None:
        """Forget all changes so far."""
        self._news.clear()

    @property
    def news(self) -> bool:
        """Return whether something may have changed since `forget`."""
        return self._news.is_set()

    def wait(self) -> None:
        """Wait for a change. Raise LabError if watching failed."""
        # In short waits, because Python handles signals between them.
        while not self._news.wait(self._poll_seconds):
            if self._failure is not None:
                raise self._failure

    def close(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def __enter__(self) -> FileWatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watch(self, folder: Path, file: Path, over: threading.Event) -> None:
        version = _version(file)
        while not over.is_set():
            watched = _identity(folder)
            for changed in _changes(folder, over, self._poll_seconds, self._fail):
                now = _version(file)
                if changed or now != version:
                    self._news.set()
                version = now
                if over.is_set():
                    return
                if _identity(folder) != watched:
                    self._news.set()
                    break

    def _fail(self, error: Exception) -> None:
        self._failure = LabError(
            f"the folder cannot be watched: {printable(str(error))}",
            "if the limit of watches is reached: sudo sysctl fs.inotify.max_user_watches=524288",
        )


def _changes(
    folder: Path, over: threading.Event, poll_seconds: float, fail: Callable[[Exception], None]
) -> Iterator[bool]:
    """Yield True at each change, and False at each poll. End if the folder does not exist."""
    import watchfiles

    try:
        ticks = watchfiles.watch(
            folder,
            watch_filter=None,
            debounce=_SAVE_LIMIT_MS,
            step=_SAVE_GAP_MS,
            stop_event=over,
            rust_timeout=int(poll_seconds * 1000),
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        # Changes before the watch began count as well.
        next(ticks, None)
        yield True
        yield from map(bool, ticks)
    except FileNotFoundError:
        over.wait(poll_seconds)
        yield False
    except (OSError, RuntimeError) as error:
        fail(error)
        over.wait(poll_seconds)


def _identity(folder: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = folder.stat()
        return status.st_dev, status.st_ino
    return None


def _version(file: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        status = file.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None
