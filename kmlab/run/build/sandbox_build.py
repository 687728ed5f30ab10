"""A build that does not wait for its guest: in a sandbox it needs the guest's base alone, so it goes on meanwhile.

Guests of one base do not even need one each.
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
from kmlab.config.lab import Lab, Module
from kmlab.host.process.sandbox import Sandbox
from kmlab.provision import lifecycle
from kmlab.provision.bases.toolchain import Target
from kmlab.run.build.make import BuildResult, build_in_sandbox
from kmlab.run.build.source_folder import read_folder

Make = Callable[[], BuildResult]


class BuildCache:
    """What one command has built in sandboxes, so that guests of one base share it; each thing is built once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[Hashable, tuple[threading.Lock, list[BuildResult]]] = {}

    def built(self, what: Hashable, make: Make) -> BuildResult:
        """What came of it, made by the first who asks; the others wait. Where it could not be made the next one tries.

        `what` is all that decides what comes of it.
        """
        with self._lock:
            making, made = self._made.setdefault(what, (threading.Lock(), []))
        with making:
            if not made:
                made.append(make())
            return made[0]


class SandboxBuild:
    """The build of one module for one guest, begun by `under_way` and awaited by `built`."""

    def __init__(
        self,
        lab: Lab,
        files: paths.GuestFiles,
        wanted: Module,
        patience: Callable[[str], float],
        report: EventSink,
        builds: BuildCache,
    ) -> None:
        self.began = self.ended = 0.0
        """By the monotonic clock."""
        self.toolchain: Path | None = None
        """That of the sandbox; None: the module is built in the guest."""
        self._lab, self._files, self._wanted, self._patience, self._report = lab, files, wanted, patience, report
        self._builds = builds
        self._thread: threading.Thread | None = None
        self._decided = threading.Event()
        self._built: BuildResult | None = None
        self._error: KmlabError | None = None

    @contextlib.contextmanager
    def under_way(self, target: Target) -> Iterator[None]:
        """Build while the block runs; at its end nobody writes in the build's folder any more."""
        self._thread = threading.Thread(target=self._go, args=(target,), daemon=True, name="build")
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
        """Whether it is built in a sandbox at all; waits until that is known."""
        self._decided.wait()
        if self._error is not None and self.toolchain is None:
            raise self._error
        return self.toolchain is not None

    def built(self) -> BuildResult:
        """What came of it; waits. Raises what kept it from being built."""
        assert self._thread is not None
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._built is None:
            raise LabError("the build came to nothing")
        return self._built

    def _go(self, target: Target) -> None:
        try:
            self.toolchain = lifecycle.toolchain_for(self._lab.build, target, self._report)
            self._decided.set()
            if self.toolchain is not None:
                self._build(self.toolchain, target)
        except BaseException as error:  # of whatever kind, as this thread's own caller hears of none
            self._error = unexpected(error, f"{self._wanted.name} could not be built")
            self._error.__cause__ = None if self._error is error else error
        finally:
            self._decided.set()

    def _build(self, toolchain: Path, target: Target) -> None:
        name = self._wanted.name
        box = Sandbox(toolchain, self._files.builds / name, name)
        self.began = time.monotonic()
        try:
            with Stage(self._report, target.name, f"build {name}") as stage:
                source = self._lab.locate(self._wanted.source)

                def make() -> BuildResult:
                    deadline = Deadline(self._patience(target.accel))
                    return build_in_sandbox(
                        box, source, target.release, deadline, lambda line: stage.progress(detail=line)
                    )

                content = frozenset(read_folder(source).items())
                self._built = self._builds.built((toolchain, target.release, name, source, content), make)
                stage.detail = self._built.paths
                stage.outcome = "ok" if self._built.ok else "failed"
        finally:
            self.ended = time.monotonic()
