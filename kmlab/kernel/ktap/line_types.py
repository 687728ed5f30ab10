"""Tell what a line of a test output is: KTAP 1 (Documentation/dev-tools/ktap.rst), TAP 13 and 14 (testanything.org)."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from kmlab.common.events import printable

Kind = Literal["version", "plan", "header", "result", "bail-out", "other"]
_TAB = 8
_LONGEST_NAME, _LONGEST_START = 300, 600
"""Characters of a name that are kept, and of the first line of a test output with all that stands before it."""


class Line(NamedTuple):
    """One line of a test output."""

    indent: int
    """Columns before its text; a tab goes to the next eighth."""
    kind: Kind
    text: str
    """The text: the name of a case or of a group, a reason, or the whole line."""
    number: int | None = None
    """Of a plan, how many results it announces; of a result, its number."""
    ok: bool = False
    directive: str = ""
    """SKIP, TODO, XFAIL, TIMEOUT or ERROR."""
    comment: str = ""
    """What follows the directive, or the hash sign if there is none."""


class Start(NamedTuple):
    """The first line of a test output."""

    prefix: str
    """What stands before the text of each line, such as the name of a module."""
    kind: Kind


def find_start(text: str, *, program: bool) -> Start | None:
    """Return how a test output begins, if this line is the first one of it.

    A kernel's begins with a version or with the header of a KUnit suite. A `program` may also print a plan or its first
    result without them, as TAP 12 has it.
    """
    if len(text) > _LONGEST_START:
        return None
    if " version " in text:
        found = _VERSION_AFTER.fullmatch(text.rstrip())
        if found:
            return Start(found["prefix"], "version")
    if "# Subtest: " in text:
        found = _HEADER_AFTER.fullmatch(text.rstrip())
        return Start(found["prefix"], "header") if found else None
    if program and text[:1] in "1on":
        if _PLAN.fullmatch(text.rstrip()):
            return Start("", "plan")
        if _FIRST_RESULT.match(text):
            return Start("", "result")
    return None


def read_line(text: str, *, program: bool) -> Line:
    """Return what a line is. A result without a number counts only if a `program` printed it."""
    plain = printable(text.rstrip().expandtabs(_TAB))
    body = plain.lstrip(" ")
    indent = len(plain) - len(body)
    first = body[:1]
    if first in ("o", "n"):
        return _read_result(indent, body, program) or Line(indent, "other", body)
    if first == "#":
        header = _HEADER.fullmatch(body)
        return Line(indent, "header", header[1][:_LONGEST_NAME]) if header else Line(indent, "other", body)
    if first in ("T", "K") and _VERSION.fullmatch(body):
        return Line(indent, "version", body)
    if first == "1" and (plan := _PLAN.fullmatch(body)):
        directive, comment = _read_directive(plan["comment"] or "")
        return Line(indent, "plan", body, int(plan["count"]), directive=directive, comment=comment)
    if body.startswith("Bail out!"):
        return Line(indent, "bail-out", body[len("Bail out!") :].strip())
    return Line(indent, "other", body)


def without_hash(text: str) -> str | None:
    """Return what follows the hash sign that kselftest's runner puts before each line of a test; None without one."""
    found = _HASH.fullmatch(text)
    return found[1] or "" if found else None


def begins_nested(text: str, after_title: bool) -> bool:
    """Return whether a line without its hash sign begins the output of one of kselftest's tests.

    A test that the runner calls may omit its version line: then its plan follows the runner's title of it.
    """
    return bool(_VERSION.fullmatch(text) or (after_title and _PLAN.fullmatch(text)))


def is_title(text: str) -> bool:
    """Return whether a line is the title that kselftest's runner prints before it calls a test."""
    return text.startswith("# selftests: ")


def _read_result(indent: int, body: str, program: bool) -> Line | None:
    found = _RESULT.fullmatch(body)
    if not found or not (found["number"] or program):
        return None
    name, comment = _split_comment(found["rest"] or "")
    directive, reason = _read_directive(comment)
    number = int(found["number"]) if found["number"] else None
    name = name.replace("\\#", "#").replace("\\\\", "\\")[:_LONGEST_NAME]
    return Line(indent, "result", name, number, not found["no"], directive, reason)


def _split_comment(rest: str) -> tuple[str, str]:
    """Split the description of a case from what follows the hash sign."""
    found = _DIRECTIVE_AFTER.search(rest) or _COMMENT_AFTER.search(rest)
    return (rest[: found.start()].strip(), rest[found.end() :].strip()) if found else (rest.strip(), "")


def _read_directive(comment: str) -> tuple[str, str]:
    found = _DIRECTIVE.match(comment)
    if not found:
        return "", comment
    word = found[1].upper()
    return ("SKIP" if word.startswith("SKIP") else word), comment[found.end() :].strip()


_PREFIX = r"(?P<prefix>(?:.{0,200}[:|>\]] ?)?)"
"""What a module or a collector puts before each line: it ends in a sign and not in a word of a sentence."""
_VERSION = re.compile(r"K?TAP version \d{1,4}")
_VERSION_AFTER = re.compile(rf"{_PREFIX}[ \t]*K?TAP version \d{{1,4}}")
_HEADER = re.compile(r"# Subtest: *(.*)")
_HEADER_AFTER = re.compile(rf"{_PREFIX}[ \t]*# Subtest: .*")
_PLAN = re.compile(r"1\.\.(?P<count>\d{1,9})(?: *# *(?P<comment>.*))?")
_RESULT = re.compile(r"(?P<no>not )?ok(?: +(?P<number>\d{1,9})(?= |$))?(?: +-(?= |$))?(?: +(?P<rest>.*))?")
_FIRST_RESULT = re.compile(r"(?:not )?ok 1(?: |$)")
_HASH = re.compile(r"#(?: (.*))?")
_WORDS = r"(SKIP(?:PED)?|TODO|XFAIL|TIMEOUT|ERROR)\b:?"
_DIRECTIVE = re.compile(_WORDS, re.IGNORECASE)
_DIRECTIVE_AFTER = re.compile(rf"(?:^| )# *(?={_WORDS})", re.IGNORECASE)
_COMMENT_AFTER = re.compile(r"(?:^| )#(?: |$)")
