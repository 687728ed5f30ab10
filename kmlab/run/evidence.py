"""Create the folder of a run, write its evidence, and remove the oldest folders."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from kmlab.common import folder_tree
from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.config.lab import GuestSpec, Lab, Module
from kmlab.config.run_options import Options
from kmlab.diagnosis.console import RunLog, dmesg, keep_latest, new_run_folder
from kmlab.run.context.results import CollectedFile, Results
from kmlab.run.result import Collected

COLLECTED = "collected"
"""The folder of the guest's files, in a run's folder."""
_LARGEST_READ = 64 << 20
"""Bytes of a file that `read_evidence` reads at most."""

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


def evidence_files(folder: Path) -> list[str]:
    """Return the names of the files in a run's folder, sorted, as `read_evidence` takes them."""
    with contextlib.suppress(OSError), folder_tree.opened(folder) as top:
        entries = folder_tree.walk(top, unreadable=lambda *_: None)
        return [printable(each.path) for each in entries if each.path and stat.S_ISREG(each.status.st_mode)]
    return []


def read_evidence(runs: Path, run: str, file: str) -> str:
    """Return the text of a file in a run's folder. Raise ConfigError for any name that is not one of its files.

    The names may come from anyone: no name leads out of the folder, and no link is followed.
    """
    *folders, name = (run, *file.split("/"))
    if any(each in ("", ".", "..") or "\0" in each for each in (*folders, name)) or "/" in run:
        raise _no_file(run, file)
    try:
        with contextlib.ExitStack() as stack:
            handle = stack.enter_context(folder_tree.opened(runs))
            for folder in folders:
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
                stack.callback(os.close, handle)
            content = folder_tree.read_file(handle, name, _LARGEST_READ)
    except OSError:
        content = None
    if content is None:
        raise _no_file(run, file)
    return content.decode("utf-8", "replace")


def _no_file(run: str, file: str) -> ConfigError:
    return ConfigError(
        f"the run {printable(run, 100)} has no file {printable(file, 100)}",
        "use a run and a file that a verdict names; older runs are removed (keep_runs in lab.yaml)",
    )


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
