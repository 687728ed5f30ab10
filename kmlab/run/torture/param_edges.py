"""List the values at the edges of a module parameter's type: those that the kernel's parsers accept and refuse."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from kmlab.kernel.module.modinfo import Param

_BITS = {
    "byte": (0, 255),
    "short": (-(1 << 15), (1 << 15) - 1),
    "ushort": (0, (1 << 16) - 1),
    "int": (-(1 << 31), (1 << 31) - 1),
    "uint": (0, (1 << 32) - 1),
    "long": (-(1 << 63), (1 << 63) - 1),
    "ulong": (0, (1 << 64) - 1),
    "ullong": (0, (1 << 64) - 1),
    "hexint": (0, (1 << 32) - 1),
}
"""Smallest and largest value of each type of include/linux/moduleparam.h, on 64 bits."""
_ARRAY = re.compile(r"array of (?P<type>\w+)")
_DRAWN = 2
_LONG, _LONGER_THAN_CHARP, _MANY = 900, 1500, 300
"""Characters of a long text; of one that param_set_charp() refuses (more than 1024); elements of a long array."""


class Edge(NamedTuple):
    """One value, with a name for it."""

    name: str
    value: str


def edges(param: Param, seed: int) -> Iterator[Edge]:
    """Return the values at the edges of a parameter's type; of a number's also some in between, drawn by the seed."""
    if match := _ARRAY.fullmatch(param.type):
        yield from _array_edges(match["type"])
    elif param.type in _BITS:
        yield from _number_edges(param.type)
        draw = random.Random(f"{seed} {param.name}")
        yield from (Edge(f"random-{number}", str(draw.randint(*_BITS[param.type]))) for number in range(1, _DRAWN + 1))
    elif param.type in ("bool", "invbool", "bint"):
        yield from (Edge("yes", "y"), Edge("no", "n"), Edge("wrong", "2"), Edge("empty", ""))
    else:
        yield from _text_edges()


def _number_edges(kind: str) -> Iterator[Edge]:
    low, high = _BITS[kind]
    yield from (Edge("0", "0"), Edge("1", "1"), Edge("minus-1", "-1"))
    yield from (Edge("smallest", str(low)), Edge("largest", str(high)))
    yield from (Edge("below", str(low - 1)), Edge("above", str(high + 1)))
    yield from (Edge("empty", ""), Edge("word", "word"), Edge("long", "9" * _LONG))


def _text_edges() -> Iterator[Edge]:
    yield from (Edge("empty", ""), Edge("one", "x"), Edge("format", "%s%n%p"), Edge("slash", "/../.."))
    yield from (Edge("long", "x" * _LONG), Edge("too-long", "x" * _LONGER_THAN_CHARP))


def _array_edges(kind: str) -> Iterator[Edge]:
    one = "x" if kind == "charp" else "1"
    largest = str(_BITS[kind][1]) if kind in _BITS else one
    yield from (Edge("empty", ""), Edge("one", one), Edge("holes", ",,"), Edge("too-many", ",".join([one] * _MANY)))
    yield from (Edge("largest", largest), Edge("minus-1", "-1"))
