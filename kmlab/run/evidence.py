"""Create the folder of a run, write its evidence, and remove the oldest folders."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from kmlab.common.events import printable
from kmlab.config.lab import GuestSpec, Lab, Module
from kmlab.config.run_options import Options
from kmlab.diagnosis.console import RunLog, dmesg, keep_latest, new_run_folder
from kmlab.run.context.results import CollectedFile, Results
from kmlab.run.result import Collected

COLLECTED = "collected"
"""The folder of the guest's files, in a run's folder."""

_in_use: set[Path] = set()
"""Folders of runs that have not ended, in whichever thread: the oldest are removed, but none of these."""
_lock = threading.Lock()


def new_folder(runs: Path, lab: Lab, module: Module, spec: GuestSpec, options: Options) -> Path:
    """Create a folder for a run, and remove the oldest ones beyond the limits in lab.yaml."""
    with _lock:
        keep_latest(runs, max(lab.keep_runs, options.siblings) - 1, lab.keep_runs_size, _in_use)
        folder = new_run_folder(runs, module.name, spec.name)
        _in_use.add(folder)
        return folder


def release(folder: Path) -> None:
    """Mark the run as ended: its folder may be removed like any other."""
    _in_use.discard(folder)


def write_evidence(folder: Path, results: Results, log: RunLog, console: bytes) -> None:
    """Write the files of a run's folder, except its result."""
    (folder / "console.log").write_bytes(console)
    texts = {
        "dmesg.txt": dmesg(log.records),
        "build.log": printable_lines(results.build.log),
        "sections.txt": _sections(results.sections),
        "registers.txt": printable_lines(results.hang.registers),
        "tasks.txt": printable_lines("\n".join(results.hang.tasks)),
        "exercise.log": printable_lines(results.exercise_log),
        "commands.log": printable_lines(results.transcripts),
    }
    for name, text in texts.items():
        if text or name in ("dmesg.txt", "build.log"):
            (folder / name).write_text(text, encoding="utf-8", errors="replace")


def write_collected(folder: Path, files: Sequence[CollectedFile]) -> tuple[Collected, ...]:
    """Write the files that came from the guest, under names that are safe here. Return them with these names."""
    written: list[Collected] = []
    for file in files:
        home = folder / COLLECTED
        home.mkdir(exist_ok=True)
        name = _free_name(safe_name(file.path), {each.name for each in written})
        # The folder is the run's own, and the name is new in it: nothing is followed or replaced.
        with (home / name).open("xb") as target:
            target.write(file.content)
        written.append(Collected(printable(file.path), name, len(file.content)))
    return tuple(written)


def safe_name(path: str) -> str:
    """Return a file name for a path in the guest: letters, digits, `._+-`, at most 150, and no leading dot or dash."""
    return re.sub("[^A-Za-z0-9._+-]", "_", path.strip("/"))[-150:].lstrip("._-") or "file"


def _free_name(name: str, taken: Collection[str]) -> str:
    numbered = (f"{name}.{number}" for number in itertools.count(2))
    return name if name not in taken else next(each for each in numbered if each not in taken)


def _sections(sections: Mapping[str, Mapping[str, int]]) -> str:
    """Return where the modules were in the guest's memory, as gdb and crash need it."""
    return "".join(f"{module} {name} 0x{at:x}\n" for module, places in sections.items() for name, at in places.items())


def printable_lines(text: str) -> str:
    """Return a program's output as lines that are safe to show."""
    return "".join(f"{printable(line)}\n" for line in text.splitlines())
