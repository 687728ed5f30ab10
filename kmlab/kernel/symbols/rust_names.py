"""Demangle the names of Rust functions (RFC 2603, "Rust symbol name mangling v0", and the older `_ZN…17h…E`).

Only what a stack trace of the kernel needs: paths, types and generic arguments. A name that is damaged, or that would
become too long, stays as it is. docs/decisions/rust-names.md says why no library does this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

_LONGEST = 512
"""Characters of a mangled name that are read, and of a readable one that are kept."""
_STEPS = 600
"""Parts of one name that are read: a back reference can make a short name grow without end."""
_DEEPEST = 40
_LEGACY = re.compile(r"_ZN(.{1,500}?)17h[0-9a-f]{16}E")
_ESCAPES = {"$LT$": "<", "$GT$": ">", "$RF$": "&", "$BP$": "*", "$C$": ",", "$LP$": "(", "$RP$": ")", "$SP$": "@"}
_ESCAPE = re.compile(r"\$(?:[A-Z]{1,2}|u[0-9a-f]{1,6})\$|\.\.")
_BASIC = {
    "a": "i8",
    "b": "bool",
    "c": "char",
    "d": "f64",
    "e": "str",
    "f": "f32",
    "h": "u8",
    "i": "isize",
    "j": "usize",
    "l": "i32",
    "m": "u32",
    "n": "i128",
    "o": "u128",
    "p": "_",
    "s": "i16",
    "t": "u16",
    "u": "()",
    "v": "...",
    "x": "i64",
    "y": "u64",
    "z": "!",
}


@lru_cache(maxsize=1024)
def demangle(name: str) -> str:
    """Return the path as the author wrote it, such as `<tank::Tank>::fill`; `name` itself if it is not a Rust name."""
    if len(name) > _LONGEST:
        return name
    if name.startswith("_R"):
        try:
            return _Reader(name[2:]).path()[:_LONGEST] or name
        except _NotRust:
            return name
    legacy = _LEGACY.match(name)
    return _legacy(legacy[1]) or name if legacy else name


class _NotRust(Exception):
    """The name is damaged, or would become too large."""


def _legacy(text: str) -> str | None:
    parts = []
    while text:
        length = re.match(r"\d{1,3}", text)
        if not length or not 0 < int(length[0]) <= len(text) - length.end():
            return None
        end = length.end() + int(length[0])
        part = text[length.end() : end]
        parts.append(_ESCAPE.sub(_unescape, part.removeprefix("_") if part.startswith("_$") else part))
        text = text[end:]
    return "::".join(parts)


def _unescape(found: re.Match[str]) -> str:
    if found[0] == "..":
        return "::"
    if found[0].startswith("$u"):
        character = chr(min(int(found[0][2:-1], 16), 0x10FFFF))
        return character if character.isprintable() else "?"
    return _ESCAPES.get(found[0], found[0])


class _Reader:
    """Reads one name from left to right; each method reads one production of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._steps = 0
        self._depth = 0

    def path(self) -> str:
        tag = self._enter()
        try:
            if tag == "C":
                return self._identifier()
            if tag in "MX":
                self._disambiguator()
                self.path()
                return f"<{self._type()}>" if tag == "M" else f"<{self._type()} as {self.path()}>"
            if tag == "Y":
                return f"<{self._type()} as {self.path()}>"
            if tag == "N":
                return self._nested()
            if tag == "I":
                return f"{self.path()}::<{', '.join(self._until_end(self._argument))}>"
            if tag == "B":
                return self._reference(self.path)
            raise _NotRust
        finally:
            self._depth -= 1

    def _nested(self) -> str:
        namespace = self._next()
        path, name = self.path(), self._identifier()
        if namespace.isupper():
            # A closure or a shim has no name of its own.
            return f"{path}::{{{ {'C': 'closure', 'S': 'shim'}.get(namespace, namespace) }}}"
        return f"{path}::{name}" if name else path

    def _type(self) -> str:
        tag = self._enter()
        try:
            if tag in _BASIC:
                return _BASIC[tag]
            if tag in "RQ":
                if self._peek() == "L":
                    self._next()
                    self._base62()
                return f"&{'mut ' if tag == 'Q' else ''}{self._type()}"
            if tag in "PO":
                return f"*{'const' if tag == 'P' else 'mut'} {self._type()}"
            if tag == "A":
                return f"[{self._type()}; {self._constant()}]"
            if tag == "S":
                return f"[{self._type()}]"
            if tag == "T":
                return f"({', '.join(self._until_end(self._type))})"
            if tag == "B":
                return self._reference(self._type)
            if tag in "FD":
                raise _NotRust  # a function's type or `dyn`: too rare in a trace
            self._at -= 1
            return self.path()
        finally:
            self._depth -= 1

    def _argument(self) -> str:
        if self._peek() == "L":
            self._next()
            self._base62()
            return "'_"
        if self._peek() == "K":
            self._next()
            return self._constant()
        return self._type()

    def _constant(self) -> str:
        tag = self._enter()
        try:
            if tag == "B":
                return self._reference(self._constant)
            digits = self._match(r"(n?[0-9a-f]{0,32})_")
            return "_" if tag == "p" else str(int(digits.lstrip("n") or "0", 16))
        finally:
            self._depth -= 1

    def _identifier(self) -> str:
        self._disambiguator()
        puny = self._peek() == "u"
        length = int(self._match(r"u?(0|[1-9]\d{0,3})_?"))
        name = self._text[self._at : self._at + length]
        self._at += length
        if len(name) != length:
            raise _NotRust
        if not puny:
            return name
        plain, _, code = name.rpartition("_")
        try:
            found = f"{plain}-{code}".removeprefix("-").encode().decode("punycode")
        except (UnicodeError, ValueError, OverflowError):
            raise _NotRust from None
        if not found.isprintable():
            raise _NotRust
        return found

    def _disambiguator(self) -> None:
        if self._peek() == "s":
            self._next()
            self._base62()

    def _base62(self) -> int:
        digits = self._match(r"([0-9a-zA-Z]{0,16})_")
        value = 0
        for digit in digits:
            value = value * 62 + "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ".index(digit)
        return value + 1 if digits else 0

    def _reference(self, read: Callable[[], str]) -> str:
        """Read what stands at an earlier place of the name."""
        before = self._at - 1
        there = self._base62()
        if there >= before:
            raise _NotRust
        back, self._at = self._at, there
        found = read()
        self._at = back
        return found

    def _until_end(self, read: Callable[[], str]) -> Iterator[str]:
        while self._peek() != "E":
            yield read()
        self._next()

    def _match(self, pattern: str) -> str:
        found = re.compile(pattern).match(self._text, self._at)
        if not found:
            raise _NotRust
        self._at = found.end()
        return found[1]

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        tag = self._peek()
        if not tag:
            raise _NotRust
        self._at += 1
        return tag

    def _enter(self) -> str:
        self._steps += 1
        self._depth += 1
        if self._steps > _STEPS or self._depth > _DEEPEST:
            raise _NotRust
        return self._next()
