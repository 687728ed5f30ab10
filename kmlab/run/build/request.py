"""Hold how a module is to be built: its sources, how make is called, and what must come before and beside it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from kmlab.config.lab import Lab, Make, Module
from kmlab.config.run_options import Options
from kmlab.kernel.build import dkms
from kmlab.kernel.module.line_counts import GCOV_VARIABLES
from kmlab.run.build.source_folder import Manifest
from kmlab.run.build.source_tree import SourceTree, find_tree

_PROGRAM = re.compile(r"(?:\./)?[A-Za-z0-9_][\w.+-]*(?:/[\w.+-]+)*")


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One module's build."""

    name: str
    tree: SourceTree
    make: Make = field(default_factory=Make)
    prepare: str | None = None
    """A command that runs in the module's folder before make."""
    exercise: str | None = None
    """The command that the built programs are for."""

    @property
    def uses_dkms(self) -> bool:
        """Return whether the folder is built as dkms would: it has a dkms.conf, and lab.yaml says nothing of make."""
        return self.make == Make() and (self.tree.folder / dkms.FILE).is_file()

    @property
    def folder(self) -> PurePosixPath:
        """Return the module's folder in a guest or a sandbox."""
        return self.tree.in_guest(self.name)


def plain_request(name: str, source: Path) -> BuildRequest:
    """Return the build of a folder that needs nothing else."""
    return BuildRequest(name, SourceTree(source))


def request_for(lab: Lab, module: Module, options: Options) -> BuildRequest:
    """Return how a run builds a module. Raise ConfigError if its root is no folder that holds it."""
    counted = GCOV_VARIABLES if options.coverage else {}
    make = replace(module.make, variables={**module.make.variables, **options.make, **counted})
    exercise = options.exercise or "\n".join(each.run for each in module.exercises) or None
    return BuildRequest(module.name, find_tree(lab, module, options), make, module.prepare, exercise)


def missing_programs(words: str, there: Manifest, made: Collection[str]) -> list[str]:
    """Return the files of the module's folder that a command names and that neither the author nor make put there."""
    try:
        split = shlex.split(words, comments=True)
    except ValueError:
        split = words.split()
    named = [re.sub(r"^(?:\$PWD|\$\{PWD\}|\$\(pwd\))/", "./", word.rstrip(";&|")) for word in split]
    paths = [name.removeprefix("./") for name in named if "/" in name and _PROGRAM.fullmatch(name)]
    return [path for path in dict.fromkeys(paths) if path not in there and path not in made and ".." not in path]
