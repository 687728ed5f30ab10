"""Make a compilation database (compile_commands.json, for clangd) of what kbuild noted about each object.

kbuild writes the command that made x.o to .x.o.cmd (scripts/Kbuild.include). A module's build can write anything there,
so only flags that tell an editor how to read a source are kept, and only paths in known folders.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_COMMAND = re.compile(r"^(?:saved)?cmd_(\S+) := (.*)$", re.MULTILINE)
_KEPT = re.compile(
    r"-[DU]\w.*|-std=[\w+:.-]+|-m(?:64|32|cmodel=\w+|abi=\w+)|-O[0-3s]|-nostdinc|"
    r"-f(?:short-wchar|(?:un)?signed-char|ms-extensions|freestanding|no-builtin|no-(?:pie|PIE|pic|PIC))|-W[\w=-]+",
    re.ASCII | re.DOTALL,
)
"""Flags that change how a source is read, or which warnings it gets. None makes a compiler load or run anything."""
_WITH_PATH = ("-I", "-isystem", "-iquote", "-include", "-imacros")
_NOT_WARNINGS = ("-Wp,", "-Wa,", "-Wl,")


@dataclass(frozen=True, slots=True)
class Entry:
    """How one source is compiled, with paths of this host."""

    directory: str
    file: str
    arguments: tuple[str, ...]


def parse_command(text: str) -> list[str]:
    """Return the compiler's words in the content of a .cmd file; none if it has no such command."""
    match = _COMMAND.search(text)
    if match is None:
        return []
    line = match[2].replace("$(pound)", "#").replace("\\#", "#").replace("$$", "$")
    try:
        words = shlex.split(line)
    except ValueError:
        return []
    # A command that goes on, as with objtool, is joined by `;`.
    ends = [at for at, word in enumerate(words) if word in (";", "&&") or word.endswith(";")]
    return words[: ends[0]] if ends else words


def entry(words: Sequence[str], directory: str, folders: Mapping[str, str]) -> Entry | None:
    """Return the entry of a compiler's command that ran in `directory`; None if it compiles no known C file.

    `folders` are the folders that the command knows, with their places on this host.
    """
    place = _place(directory, folders)
    source = words[-1] if words else ""
    file = _place(posixpath.join(directory, source), folders)
    if place is None or file is None or not source.endswith(".c") or "-c" not in words:
        return None
    arguments = ["cc"]
    waiting = ""
    for word in words[1:-1]:
        flag = waiting or next((each for each in _WITH_PATH if word.startswith(each)), "")
        value = word if waiting else word[len(flag) :]
        waiting = ""
        if flag and not value:
            waiting = flag
        elif flag:
            path = _place(posixpath.join(directory, value), folders)
            arguments += [flag, path] if path is not None else []
        elif _KEPT.fullmatch(word) and not word.startswith(_NOT_WARNINGS):
            arguments.append(word)
    return Entry(place, file, (*arguments, "-Wno-unknown-warning-option", "-c", file))


def _place(path: str, folders: Mapping[str, str]) -> str | None:
    """Return the path on this host; None for one outside of the known folders."""
    whole = posixpath.normpath(path)
    for inside, here in sorted(folders.items(), key=lambda pair: -len(pair[0])):
        if whole == inside or whole.startswith(f"{inside}/"):
            return f"{here}{whole[len(inside) :]}"
    return None
