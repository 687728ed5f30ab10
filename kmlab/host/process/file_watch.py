"""Saves, as they happen: a folder and lab.yaml, watched by way of watchfiles (inotify(7)).

A kernel's watch holds on to the folder that was there when it began. One that is deleted, renamed or made anew is
therefore looked for twice a second, and watched again; so is lab.yaml, which lies in a folder where much else happens.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from kmlab.common.errors import LabError
from kmlab.common.events import printable

_GLANCE = 0.5
"""Seconds between two looks at what no watch tells."""
_TOGETHER = 50
"""Milliseconds of silence that end a save of many files."""
_AT_LAST = 1600
"""Milliseconds after which what was saved counts though more comes."""


class Saves:
    """News of what `point` names. It may be about nothing that counts: whoever hears of it compares."""

    def __init__(self, glance: float = _GLANCE) -> None:
        self._glance = glance
        self._news = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched: tuple[Path, Path] | None = None
        self._failure: LabError | None = None

    def point(self, folder: Path, file: Path) -> None:
        """Watch all of `folder`, and one file, instead of whatever was watched before."""
        if self._watched == (folder, file):
            return
        self.close()
        self._watched, self._over = (folder, file), threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(folder, file, self._over), daemon=True, name="saves")
        self._thread.start()

    def forget(self) -> None:
        """Count what was told so far as heard."""
        self._news.clear()

    @property
    def news(self) -> bool:
        """Whether something may have changed since `forget`."""
        return self._news.is_set()

    def wait(self) -> None:
        """Wait for news; LabError if there can be none."""
        # In pieces, for the signals that Python handles between two of them.
        while not self._news.wait(self._glance):
            if self._failure is not None:
                raise self._failure

    def close(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def __enter__(self) -> Saves:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watch(self, folder: Path, file: Path, over: threading.Event) -> None:
        version = _version(file)
        while not over.is_set():
            armed = _identity(folder)
            for changed in _ticks(folder, over, self._glance, self._fail):
                now = _version(file)
                if changed or now != version:
                    self._news.set()
                version = now
                if over.is_set():
                    return
                if _identity(folder) != armed:
                    self._news.set()
                    break

    def _fail(self, error: Exception) -> None:
        self._failure = LabError(
            f"the folder cannot be watched: {printable(str(error))}",
            "where the limit of watches is reached: sudo sysctl fs.inotify.max_user_watches=524288",
        )


def _ticks(folder: Path, over: threading.Event, glance: float, fail: Callable[[Exception], None]) -> Iterator[bool]:
    """At each save, and as often as one has to look: whether something was saved. Ends when there is no such folder."""
    import watchfiles

    try:
        ticks = watchfiles.watch(
            folder,
            watch_filter=None,
            debounce=_AT_LAST,
            step=_TOGETHER,
            stop_event=over,
            rust_timeout=int(glance * 1000),
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        # Whatever was saved before the watch began is news as well.
        next(ticks, None)
        yield True
        yield from map(bool, ticks)
    except FileNotFoundError:
        over.wait(glance)
        yield False
    except (OSError, RuntimeError) as error:
        fail(error)
        over.wait(glance)


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
