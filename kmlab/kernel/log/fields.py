"""Read log messages that came as fields: journalctl's JSON, export and verbose output, dmesg --json, other collectors.

Follows systemd's Journal Export Formats and systemd.journal-fields(7), and dmesg(1).
"""

from __future__ import annotations

import json
import re
from typing import Any

Message = tuple[dict[str, str], str]
"""The fields of a message by name, and its text."""

_MESSAGE_FIELDS = ("MESSAGE", "msg", "log", "message")
_MOST_FIELDS = 200
_LONGEST = 1 << 20
"""Characters of one field."""


class FieldReader:
    """Collects the fields of a message that is spread over several lines."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}
        self.busy = ""
        """The form in which a message is being read: `pretty`, `export`, `verbose`; empty where none is."""
        self._binary: str | None = None
        """The field whose content follows with its length before it."""
        self._last: str | None = None
        """The field that such a content is of, while it may go on."""

    def takes(self, line: str) -> bool:
        """Tell whether the line belongs to a message in fields: to the one that is being read, or to a new one."""
        if self.busy == "pretty":
            return line.lstrip()[:1] in _JSON
        if self.busy == "export":
            return bool(self._binary or self._last or _PAIR.match(line) or _NAME.fullmatch(line))
        if self.busy == "verbose":
            return bool(_PAIR.match(line) or _VERBOSE.search(line))
        if line[:1] in _BEGINS:
            head = line.lstrip(" \t\x1e")[:7]
            if head[:1] in ("{", "}") or head == "data: {":
                return _OBJECT.match(line) is not None
            if head.startswith("__"):
                return line.lstrip().startswith(_CURSORS)
        return "[s=" in line and line[:1] not in "<[" and _VERBOSE.search(line) is not None

    def feed(self, line: str) -> list[Message]:
        """Take in a line that belongs here; the messages that it completes."""
        if not self.busy:
            return self._begin(line)
        if self.busy == "pretty":
            return self._read_pretty(line)
        begins = line.startswith(_CURSORS) and line.partition("=")[0] in self._fields
        if begins or (self.busy == "verbose" and _VERBOSE.search(line)):
            form = self.busy
            done = self.close()
            self.busy = form
            self._read_pair(line)
            return done
        self._read_pair(line)
        return []

    def close(self) -> list[Message]:
        """Give the message that was being read."""
        fields, self._fields, self.busy, self._binary, self._last = self._fields, {}, "", None, None
        message = _message(fields)
        return [message] if message else []

    def _begin(self, line: str) -> list[Message]:
        text = line.strip(" \t\x1e").removeprefix("data: ").rstrip(",")
        if text.startswith("{") and text.endswith("}"):
            return _of_object(text)
        if text.startswith(("{", "}")):
            self.busy = "pretty"
            return []
        if text.startswith("__"):
            self.busy = "export"
            self._read_pair(text)
            return []
        self.busy = "verbose"
        return []

    def _read_pretty(self, line: str) -> list[Message]:
        text = line.strip()
        if text.startswith("}"):
            done = self.close()
            # dmesg closes one and opens the next on a line: `},{`.
            self.busy = "pretty" if text.endswith("{") else ""
            return done
        found = _PRETTY.match(text)
        if found:
            try:
                value = json.loads(found[2])
            except (ValueError, RecursionError):
                return []
            self._put(found[1], _text(value))
        return []

    def _read_pair(self, line: str) -> None:
        found = _PAIR.match(line)
        if self._binary is not None:
            # Eight bytes of length, which are no text, stand before the content.
            self._put(self._binary, _LENGTH.sub("", line, count=1))
            self._last, self._binary = self._binary, None
        elif found:
            self._put(found[1], found[2])
            self._last = None
        elif self.busy == "export" and _NAME.fullmatch(line):
            self._binary = line
        elif self._last and len(self._fields.get(self._last, "")) < _LONGEST:
            # Only a content of several lines comes with its length.
            self._fields[self._last] = f"{self._fields.get(self._last, '')}\n{line}"

    def _put(self, name: str, value: str) -> None:
        if len(self._fields) < _MOST_FIELDS:
            self._fields[name] = value


def _of_object(text: str) -> list[Message]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(value, dict):
        return []
    fields = {name: _text(content) for name, content in list(value.items())[:_MOST_FIELDS]}
    message = _message(fields)
    return [message] if message else []


def _message(fields: dict[str, str]) -> Message | None:
    name = next((name for name in _MESSAGE_FIELDS if name in fields), None)
    return (fields, fields[name]) if name else None


def _text(value: Any) -> str:
    """Give a field's value as text; the journal has an array of bytes where it is none."""
    if isinstance(value, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
        return bytes(value).decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else str(value)


_CURSORS = ("__CURSOR=", "__REALTIME_TIMESTAMP=")
_JSON = frozenset('"[]{},-0123456789tfn') | {""}
_BEGINS = frozenset("{}_d \t\x1e")
_OBJECT = re.compile(
    r'[\s\x1e]{0,12}(?:data: )?(?:\{.{0,4000}?"(?:MESSAGE|msg|log|message)" ?: ?["\[]|\{\s{0,8}$|\},\{\s{0,8}$)',
    re.DOTALL,
)
_PRETTY = re.compile(r'"([\w@.-]{1,64})" {0,4}: {0,24}(.*?),?$', re.DOTALL)
_VERBOSE = re.compile(r"\[s=[0-9a-f]{1,32};i=[0-9a-f]{1,16};")
_PAIR = re.compile(r"\s{0,12}(_{0,2}[A-Z][A-Z0-9_]{0,63})=(.*)", re.DOTALL)
_NAME = re.compile(r"_{0,2}[A-Z][A-Z0-9_]{0,63}")
_LENGTH = re.compile(r"^.(?:\x00|\\x[0-9a-f]{2}|.){0,7}?(?<=\x00\x00\x00)(?!\x00)", re.DOTALL)
