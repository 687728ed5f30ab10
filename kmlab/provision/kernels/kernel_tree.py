"""Configure and make a kernel's sources in the build sandbox. An interrupted build goes on where it stopped."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import LabError
from kmlab.common.events import Deadline, Stage, printable
from kmlab.host.process.sandbox import Limits, Sandbox, SandboxResult
from kmlab.kernel.build import build_tree, config_fragment

_BUILD_PATIENCE = 12 * 3600.0
_SHORT_PATIENCE = 1800.0
_AUTO_CONF = "include/config/auto.conf"
_STEP = re.compile(r"  (?:CC|AS|LD|AR|HOSTCC|GEN|OBJCOPY)\b")
_ERROR = re.compile(r"(?:error:|Error \d+|\*\*\*)")
_TYPICAL_STEPS = 2000
"""Lines of a build's output for a flavour on x86-64, seen with Linux 6.1 and 6.12: for the estimate only."""
_ENVIRONMENT = {"KBUILD_BUILD_USER": "kmlab", "KBUILD_BUILD_HOST": "lab", "KBUILD_BUILD_TIMESTAMP": "@0"}
"""The same sources, options and compiler make the same kernel."""


@dataclass(frozen=True, slots=True)
class KernelTree:
    """A folder with a kernel's sources, and the sandbox that builds there."""

    folder: Path
    root: Path
    """The sandbox's root file system."""
    arch: str
    clang: bool

    @property
    def sources(self) -> Path:
        return self.folder / "linux"

    @property
    def _box(self) -> Sandbox:
        cores = os.cpu_count() or 1
        limits = Limits(
            memory=max(6, 2 * cores) << 30, processes=512 + 32 * cores, disk=32 << 30, files=600_000, file=4 << 30
        )
        return Sandbox(self.root, self.folder, "kernel", limits)

    def unpack(self, archive: Path, stage: Stage) -> None:
        """Unpack the sources, unless an earlier build has done so."""
        done = self.folder / "unpacked"
        if done.exists():
            return
        paths.require_space(self.folder, 4 << 30, "the kernel's sources")
        paths.remove_tree(self.sources)
        self.sources.mkdir(parents=True)
        inside = self.folder / archive.name
        if archive != inside:
            os.link(archive, inside)
        stage.progress(detail="unpacking the sources")
        words = [
            "tar",
            "--extract",
            "--no-same-owner",
            "--strip-components=1",
            "--directory=linux",
            f"--file={inside.name}",
        ]
        _require(self._box.run(words, Deadline(_SHORT_PATIENCE)), "the sources could not be unpacked")
        inside.unlink()
        done.touch()

    def append(self, added: Mapping[str, str]) -> None:
        """Add texts to the end of files of the sources, once."""
        done = self.folder / "appended"
        if done.exists():
            return
        for name, text in added.items():
            path = self.sources / name
            if path.is_file():
                path.write_text(path.read_text(encoding="utf-8", errors="replace") + text, encoding="utf-8")
        done.touch()

    def configure(self, options: Mapping[str, str], stage: Stage, *, all_of: str | None = None) -> None:
        """Write the .config: the given options, and nothing else or, on top of it, all options of the text `all_of`.

        Raise LabError if the kernel's own rules drop one of them.
        """
        stage.progress(detail="configuring the kernel")
        text = config_fragment.format_fragment(dict(options))
        config, configured = self.sources / build_tree.CONFIG, self.folder / "configured"
        if configured.is_file() and config.is_file() and configured.read_text() == text:
            return
        if all_of is None:
            (self.folder / "asked.config").write_text(text)
            goal = ["KCONFIG_ALLCONFIG=../asked.config", "allnoconfig"]
        else:
            config.write_text(f"{all_of}\n{text}")
            goal = ["olddefconfig"]
        _require(self._make(goal, _SHORT_PATIENCE), "the kernel could not be configured")
        dropped = config_fragment.find_dropped(dict(options), config.read_text())
        if dropped:
            raise LabError(
                f"the kernel's configuration does not accept {', '.join(dropped[:8])}",
                "an option that it depends on is off: add that one to `config:` too",
            )
        configured.write_text(text)

    def make(self, stage: Stage) -> None:
        """Build the kernel and its modules. Raise LabError with the first error of the build."""
        began, steps = time.monotonic(), 0

        def count(line: str) -> None:
            nonlocal steps
            if _STEP.match(line):
                steps += 1
                left = (time.monotonic() - began) / steps * max(_TYPICAL_STEPS - steps, 0)
                estimate = f", about {left / 60:.0f} min left" if steps > 60 and left > 60 else ""
                stage.progress(detail=f"{printable(line.strip(), 60)}{estimate}")

        result = self._make(["all"], _BUILD_PATIENCE, count)
        (self.folder / "build.log").write_text(result.output, encoding="utf-8", errors="replace")
        _require(result, "the kernel could not be built", f"the whole output: {self.folder / 'build.log'}")

    def change_options_of_modules(self, text: str) -> None:
        """Change the options that the builds of modules read, without building the kernel again."""
        path = self.sources / _AUTO_CONF
        path.write_text(config_fragment.change_auto_conf(path.read_text(), config_fragment.parse_fragment(text)))

    def compiler(self) -> str:
        """Return the first line of the compiler's --version."""
        result = self._box.run(["clang" if self.clang else "gcc", "--version"], Deadline(_SHORT_PATIENCE))
        _require(result, "the compiler does not run")
        return printable(result.output.partition("\n")[0], 200)

    def _make(self, goal: list[str], patience: float, on_line: Callable[[str], None] | None = None) -> SandboxResult:
        words = ["make", "-C", "linux", f"-j{os.cpu_count() or 1}", *(["LLVM=1"] if self.clang else []), *goal]
        script = f"umask 022; exec {shlex.join(words)}"
        return self._box.run(["sh", "-c", script], Deadline(patience), environment=_ENVIRONMENT, on_line=on_line)


def _require(result: SandboxResult, what: str, hint: str | None = None) -> None:
    if result.code == 0 and result.limit is None:
        return
    if result.limit is not None:
        raise LabError(f"{what}: it used more than {result.limit}", hint)
    lines = [line.strip() for line in result.output.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.search(line)]
    why = next(iter([*errors, *lines[-1:]]), "it did not end in time")
    raise LabError(f"{what}: {printable(why, 300)}", hint)
