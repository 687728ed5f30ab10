"""Read what gcc, clang, ld, modpost and make said in a build log.

Follows gcc's and GNU make's manuals, and scripts/mod/modpost.c.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from kmlab.kernel.symbols.symbolizer import relative_path

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing that is wrong, where it is known."""

    file: str | None
    """Relative to the module's folder; a kernel header is `include/linux/list.h`."""
    line: int | None
    column: int | None
    severity: Severity
    message: str
    notes: tuple[str, ...] = ()
    """What the compiler added: notes, and the includes that led here, as `file:line: text`."""
    of_test: bool = False
    """Whether a test printed it: an expectation that does not hold."""


def parse_diagnostics(log: str, folder: PurePosixPath) -> list[Diagnostic]:
    """Return the diagnostics in a build's log, each once, in its order.

    `folder` is the module's folder in the guest.
    """
    found: list[Diagnostic] = []
    reader = _Reader(folder)
    for line in log.splitlines():
        text = _COLOUR.sub("", line[:_LONGEST]).rstrip()
        reader.follow(text)
        note = _COMPILER.match(text)
        if note and note["severity"] == "note":
            if found and reader.last_was_compiler:
                found[-1] = reader.noted(found[-1], note)
            continue
        diagnostic = reader.read(text)
        if diagnostic is not None:
            found.append(diagnostic)
    return list(dict.fromkeys(found))


class _Reader:
    """Goes through a log line by line, keeping the folder that make is in and the includes on the way."""

    def __init__(self, folder: PurePosixPath) -> None:
        self._folder = folder
        self._folders: list[str] = []
        self._includes: list[str] = []
        self._callers: list[re.Match[str]] = []
        """Where the function of the next diagnostic was inlined, innermost first."""
        self._elsewhere = False
        """Whether the last diagnostic is about a header, and not yet about the line that used what is in it."""
        self.last_was_compiler = False

    def follow(self, text: str) -> None:
        entering = re.match(r"make(?:\[\d+\])?: (Entering|Leaving) directory [`'](.+)'$", text)
        if entering and entering[1] == "Entering":
            self._folders.append(entering[2])
        elif entering and self._folders:
            self._folders.pop()

    def read(self, text: str) -> Diagnostic | None:
        include = re.match(r"(?:In file included|\s+) from ([^:]+):(\d+)(?::\d+)?[,:]$", text)
        if include:
            self._includes.append(f"{self.path(include[1])}:{include[2]}")
            return None
        caller = re.match(r"\s+inlined from .+ at (?P<file>[^:]+):(?P<line>\d+)(?::(?P<column>\d+))?[,:]$", text)
        if caller:
            self._callers.append(caller)
            return None
        compiler = _COMPILER.match(text)
        if compiler:
            self.last_was_compiler = True
            self._elsewhere = not self._is_own(compiler["file"])
            notes = tuple(f"{place}: included from here" for place in self._includes)
            self._includes = []
            column = compiler["column"]
            callers, self._callers = self._callers, []
            found = Diagnostic(
                self.path(compiler["file"]),
                int(compiler["line"]),
                int(column) if column else None,
                "warning" if compiler["severity"] == "warning" else "error",
                compiler["message"],
                notes,
            )
            mine = next((caller for caller in callers if self._is_own(caller["file"])), None)
            return self._placed(found, mine, "in a function that was inlined there") if mine else found
        if text and not text[0].isspace() and not _CONTEXT.search(text):
            self._includes = []
            self._callers = []
            self.last_was_compiler = False
        return next(self._others(text), None)

    def noted(self, diagnostic: Diagnostic, note: re.Match[str]) -> Diagnostic:
        """With one note more."""
        here = f"{self.path(note['file'])}:{note['line']}"
        with_note = replace(diagnostic, notes=(*diagnostic.notes, f"{here}: {note['message']}"))
        if not self._is_own(note["file"]) or "in expansion of macro" not in note["message"]:
            return with_note
        return self._placed(with_note, note, "in what the macro stands for")

    def _placed(self, diagnostic: Diagnostic, used: re.Match[str], why: str) -> Diagnostic:
        """Place what is wrong in a header where the module's author used what is in it."""
        if not self._elsewhere:
            return diagnostic
        self._elsewhere = False
        column = used["column"]
        return replace(
            diagnostic,
            file=self.path(used["file"]),
            line=int(used["line"]),
            column=int(column) if column else None,
            notes=(f"{diagnostic.file}:{diagnostic.line}: {why}", *diagnostic.notes),
        )

    def _is_own(self, path: str) -> bool:
        """Whether a file of the log lies in the module's folder."""
        there = posixpath.normpath(posixpath.join(self._folders[-1] if self._folders else "", path))
        return there.startswith(f"{self._folder}/") or (not self._folders and not path.startswith("/"))

    def path(self, path: str) -> str:
        """Return a path of the log as the person would say it."""
        if not path.startswith("/") and self._folders:
            there = posixpath.join(self._folders[-1], path)
            inside = relative_path(there, self._folder)
            if not inside.startswith("/"):
                return inside
        return relative_path(path, self._folder)

    def _others(self, text: str) -> Iterator[Diagnostic]:
        for pattern, severity in _OTHERS:
            found = pattern.search(text)
            if found:
                parts = found.groupdict()
                file, line = parts.get("file"), parts.get("line")
                word = parts.get("severity") or severity
                yield Diagnostic(
                    self.path(file) if file else None,
                    int(line) if line else None,
                    None,
                    "warning" if word.lower() == "warning" else "error",
                    self._tidy(parts["message"]),
                )

    def _tidy(self, message: str) -> str:
        """One spelling for modpost's commonest error, which it has changed over the years; paths as a person's."""
        undefined = re.fullmatch(r"\"(\S+)\"|symbol '(\S+)' undefined!", message)
        if undefined:
            return f'"{undefined[1] or undefined[2]}" undefined!'
        return re.sub(r", needed by '(?:\./)?'$", "", message.replace(f"{self._folder}/", ""))


_LONGEST = 2000
"""No diagnostic is longer; a log may hold a line without end."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*[mK]")

# gcc and clang agree on this; the file may hold blanks but no colon.
_COMPILER = re.compile(
    r"(?P<file>[^\s:][^:]*):(?P<line>\d+)(?::(?P<column>\d+))?: "
    r"(?P<severity>fatal error|error|warning|note): (?P<message>.+)$"
)

# Lines that stand between a diagnostic and its notes.
_CONTEXT = re.compile(r"In function |At top level:|In file included")

# The first that matches counts. `message` is the text; `file`, `line` and `severity` where they are
# given.
_OTHERS: tuple[tuple[re.Pattern[str], Severity], ...] = (
    # modpost names the object by its path, before and after "modpost:" grew into the message.
    (
        re.compile(
            r"^(?P<severity>ERROR|WARNING|FATAL)(?:: modpost)?: "
            r"(?P<message>\"\S+\") \[(?P<file>[^\]]+)\] undefined!$"
        ),
        "error",
    ),
    (
        re.compile(
            r"^(?P<severity>ERROR|WARNING|FATAL): modpost: (?P<message>missing MODULE_\w+\(\)) in "
            "(?P<file>.+)$"
        ),
        "error",
    ),
    (
        re.compile(
            r"^(?P<severity>ERROR|WARNING|FATAL): modpost: (?P<file>[^\s:(\"]+)"
            r"(?:\([^)]*\))?: (?P<message>.+)$"
        ),
        "error",
    ),
    (re.compile(r"^(?P<severity>ERROR|WARNING|FATAL): modpost: (?P<message>.+)$"), "error"),
    (re.compile(r"^(?P<file>\S+\.o): (?P<severity>warning|error): (?P<message>objtool: .+)$"), "warning"),
    (
        re.compile(
            r"^(?:[^\s:]+: )?(?:[^\s:]+\.o:)?(?P<file>[^\s:]+):(?P<line>\d+): "
            r"(?P<message>(?:multiple definition of|undefined reference to) [`'][^']+')"
        ),
        "error",
    ),
    (re.compile(r"^(?:\S*[-/])?ld(?:\.\w+)?: (?P<message>(?:error: |cannot find |input file ).+)$"), "error"),
    (re.compile(r"^(?:cc1|gcc\S*|clang\S*|as): (?:fatal )?error: (?P<message>.+)$"), "error"),
    (re.compile(r"^(?:/bin/)?sh: \d+: (?P<message>\S+: not found)$"), "error"),
    (
        re.compile(r"^make(?:\[\d+\])?: (?P<message>[^*\s]\S*: (?:No such file or directory|Command not found))$"),
        "error",
    ),
    (re.compile(r"^(?P<file>[^\s:]+):(?P<line>\d+): \*\*\* (?P<message>.+?)\.?(?:  Stop\.)?$"), "error"),
    (
        re.compile(
            r"^make(?:\[\d+\])?: \*\*\* (?!\[|Waiting for unfinished|Deleting file)(?P<message>.+?)\.?(?:  Stop\.)?$"
        ),
        "error",
    ),
)
