"""Read the calls that guests/fuzz.c prints, strictly: they are the guest's words, and a C program is made of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

ARENA, ARENA_SIZE = 0x20000000, 0x10000
"""Where the buffers of calls lie, as in guests/fuzz.c."""
_MOST_CALLS = 1024
_MOST_TEXT = 64 << 20
_LONGEST_LINE = 600
_CALL = re.compile(
    r"call (?P<number>[1-9][0-9]{0,8}) (?P<kind>open|close|read|write|lseek|ioctl|mmap) (?P<slot>[0-2]) "
    r"0x(?P<a>[0-9a-f]{1,16}) 0x(?P<b>[0-9a-f]{1,16}) 0x(?P<c>[0-9a-f]{1,16}) 0x(?P<d>[0-9a-f]{1,16}) "
    r"(?P<length>[0-9]{1,5}) (?P<content>-|(?:[0-9a-f]{2}){1,128})",
    re.ASCII,
)
_NAME = re.compile(r"name (?P<name>[A-Za-z_]\w{0,63}) 0x(?P<value>[0-9a-f]{1,16})", re.ASCII)


class FuzzCall(NamedTuple):
    """One call of the device."""

    number: int
    kind: str
    """open, close, read, write, lseek, ioctl or mmap."""
    slot: int
    """Which of the program's open files it uses."""
    args: tuple[int, int, int, int]
    """open: flags; read, write: address, count; lseek: offset, whence; ioctl: command, argument; mmap: length,
    protection, flags, offset."""
    length: int = 0
    """Bytes of its buffer that are filled before the call."""
    content: bytes = b""
    """What fills them, again and again."""

    @property
    def place(self) -> int:
        """Return where its buffer is."""
        return self.args[1] if self.kind == "ioctl" else self.args[0]


class FuzzLog(NamedTuple):
    """What the program printed."""

    calls: tuple[FuzzCall, ...]
    """The last calls, in order."""
    names: dict[int, str]
    """Names of ioctls, by their number."""


def parse_fuzz_log(output: str, names: Collection[str]) -> FuzzLog:
    """Read the program's output. Other lines than its own are skipped, and names that the headers do not have."""
    calls: list[FuzzCall] = []
    found: dict[int, str] = {}
    for line in _lines(output):
        if match := _NAME.fullmatch(line):
            if match["name"] in names:
                found.setdefault(int(match["value"], 16), match["name"])
        elif (call := _call(line)) and (not calls or call.number == calls[-1].number + 1):
            calls = [*calls[1 - _MOST_CALLS :], call]
    return FuzzLog(tuple(calls), found)


def ends(calls: tuple[FuzzCall, ...]) -> Iterator[tuple[FuzzCall, ...]]:
    """Return the last call, the last 2, 4, 8 and so on, and all of them."""
    size = 1
    while size < len(calls):
        yield calls[-size:]
        size *= 2
    if calls:
        yield calls


def _lines(output: str) -> Iterator[str]:
    return (line for line in output[-_MOST_TEXT:].split("\n") if len(line) <= _LONGEST_LINE)


def _call(line: str) -> FuzzCall | None:
    match = _CALL.fullmatch(line)
    if match is None:
        return None
    args = (int(match["a"], 16), int(match["b"], 16), int(match["c"], 16), int(match["d"], 16))
    content = b"" if match["content"] == "-" else bytes.fromhex(match["content"])
    call = FuzzCall(int(match["number"]), match["kind"], int(match["slot"]), args, int(match["length"]), content)
    fits = call.place >= ARENA and call.place + call.length <= ARENA + ARENA_SIZE
    return call if (not call.length and not content) or (content and call.length and fits) else None
