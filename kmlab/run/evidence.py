"""Create the folder of a run, write its evidence, and remove the oldest folders."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from kmlab.common.events import printable
from kmlab.config.lab import GuestSpec, Lab, Module
from kmlab.config.run_options import Options
from kmlab.diagnosis.console import RunLog, dmesg, keep_latest, new_run_folder
from kmlab.run.context.results import Results

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


def _sections(sections: Mapping[str, Mapping[str, int]]) -> str:
    """Return where the modules were in the guest's memory, as gdb and crash need it."""
    return "".join(f"{module} {name} 0x{at:x}\n" for module, places in sections.items() for name, at in places.items())


def printable_lines(text: str) -> str:
    """Return a program's output as lines that are safe to show."""
    return "".join(f"{printable(line)}\n" for line in text.splitlines())
