"""Build a module in a sandbox while its guest is being restored: the build needs only the guest's base.

Guests with the same base share one build.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import KmlabError, LabError, unexpected
from kmlab.common.events import Deadline, EventSink, Stage
from kmlab.config.lab import Lab
from kmlab.host.process.sandbox import Sandbox
from kmlab.provision import lifecycle
from kmlab.provision.bases.toolchain import Target
from kmlab.run.build.make import build_in_sandbox
from kmlab.run.build.products import BuildResult
from kmlab.run.build.request import BuildRequest

Make = Callable[[], BuildResult]


class BuildCache:
    """What one command has built in sandboxes, so that guests with the same base share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[Hashable, tuple[threading.Lock, list[BuildResult]]] = {}

    def get_or_build(self, what: Hashable, make: Make) -> BuildResult:
        """Return the result for `what`. The first caller builds; others wait. After an exception the next one tries.

        `what` identifies everything that the result depends on.
        """
        with self._lock:
            lock, results = self._made.setdefault(what, (threading.Lock(), []))
        with lock:
            if not results:
                results.append(make())
            return results[0]


class SandboxBuild:
    """The build of one module for one guest, started by `under_way` and awaited by `wait`."""

    def __init__(
        self,
        lab: Lab,
        files: paths.GuestFiles,
        request: BuildRequest,
        patience: Callable[[str], float],
        events: EventSink,
        builds: BuildCache,
    ) -> None:
        self.began = self.ended = 0.0
        """By the monotonic clock."""
        self.toolchain: Path | None = None
        """The sandbox's toolchain; None: the module is built in the guest."""
        self._lab, self._files, self._request, self._patience, self._events = lab, files, request, patience, events
        self._builds = builds
        self._thread: threading.Thread | None = None
        self._decided = threading.Event()
        self._built: BuildResult | None = None
        self._error: KmlabError | None = None

    @contextlib.contextmanager
    def under_way(self, target: Target) -> Iterator[None]:
        """Build while the block runs. At its end nobody writes to the build's folder any more."""
        self._thread = threading.Thread(target=self._thread_main, args=(target,), daemon=True, name="build")
        self._thread.start()
        try:
            yield
        except KeyboardInterrupt:
            raise  # bubblewrap ends the build with this process
        except BaseException:
            self._thread.join()
            raise
        self._thread.join()

    def in_sandbox(self) -> bool:
        """Wait until the place of the build is decided; return whether it is a sandbox."""
        self._decided.wait()
        if self._error is not None and self.toolchain is None:
            raise self._error
        return self.toolchain is not None

    def wait(self) -> BuildResult:
        """Wait for the build; return its result, or raise what stopped it."""
        assert self._thread is not None
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._built is None:
            raise LabError("the build ended without a result")
        return self._built

    def _thread_main(self, target: Target) -> None:
        try:
            self.toolchain = lifecycle.toolchain_for(self._lab.build, target, self._events)
            self._decided.set()
            if self.toolchain is not None:
                self._build(self.toolchain, target)
        except BaseException as error:  # any kind: nobody else sees this thread's exceptions
            self._error = unexpected(error, f"{self._request.name} could not be built")
            self._error.__cause__ = None if self._error is error else error
        finally:
            self._decided.set()

    def _build(self, toolchain: Path, target: Target) -> None:
        name = self._request.name
        box = Sandbox(toolchain, self._files.builds / name, name)
        self.began = time.monotonic()
        try:
            with Stage(self._events, target.name, f"build {name}") as stage:
                request = self._request

                def make() -> BuildResult:
                    deadline = Deadline(self._patience(target.accel))
                    return build_in_sandbox(
                        box, request, target.release, deadline, lambda line: stage.progress(detail=line)
                    )

                content = frozenset(request.tree.manifest().items())
                what = (toolchain, target.release, repr(request), content)
                self._built = self._builds.get_or_build(what, make)
                stage.detail = self._built.paths
                stage.outcome = "ok" if self._built.ok else "skipped" if self._built.skipped else "failed"
        finally:
            self.ended = time.monotonic()
