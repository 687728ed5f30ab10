"""Fuzz a module's device: say what the program guests/fuzz.c needs to know, and which shell lines run it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

FUZZ_FOLDER = "/var/lib/kmlab/fuzz"
"""The folder in the guest with the compiled programs."""
FUZZ, REPRODUCER = "fuzz", "reproducer"
"""Their names: the one that draws calls, and the one that makes those of an earlier run."""
DEVICE_ABSENT = 6
"""The exit code of both if the device does not exist."""
ROUND_SECONDS = 5
_MOST_CALLS = 50_000
"""Calls of one case, at most."""
_CAREFUL_SECONDS = 120
_MOST_IOCTLS, _MOST_NUMBERS = 256, 512
_IOCTL = re.compile(
    r"^[ \t]*#[ \t]*define[ \t]+(?P<name>[A-Za-z_]\w{0,63})[ \t]+[^\n]*?\b_IO(?:C|R|W|WR|RW)?[ \t]*\(",
    re.MULTILINE | re.ASCII,
)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])(0[xX][0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,18})[uUlL]{0,3}(?![\w.])", re.ASCII)


class FuzzTarget(NamedTuple):
    """What is fuzzed, and how."""

    device: str
    rounds: int
    careful: bool = False
    """Print each call before it is made."""
    reproduces: bool = False
    """Make the calls of an earlier run, by the compiled reproducer."""

    def command(self, seed: int, number: int) -> str:
        """Return the shell line of one case."""
        if self.reproduces:
            return f"{FUZZ_FOLDER}/{REPRODUCER}; [ $? -ne {DEVICE_ABSENT} ] || exit {DEVICE_ABSENT}"
        seconds = _CAREFUL_SECONDS if self.careful else ROUND_SECONDS
        line = f"{FUZZ_FOLDER}/{FUZZ} {self.device} {seed_of(seed, number)} {_MOST_CALLS} {seconds}"
        return f"{line} careful || exit $?" if self.careful else f"{line} || exit $?"


def seed_of(seed: int, number: int) -> int:
    """Return the seed of one case, from the user's seed and the number of the case."""
    return (seed * 10_000 + number) % (1 << 63)


def ioctl_names(*headers: str) -> list[str]:
    """Return the names that headers define as ioctls, by `#define NAME _IO…(…)`."""
    texts = (_COMMENT.sub(" ", header.replace("\\\n", " ")) for header in headers)
    return list(dict.fromkeys(match["name"] for text in texts for match in _IOCTL.finditer(text)))[:_MOST_IOCTLS]


def numbers(sources: Iterable[str]) -> list[int]:
    """Return the whole numbers in C sources: limits and sizes are among them. The smallest first."""
    texts = (_COMMENT.sub(" ", source) for source in sources)
    found = {int(match[1], 0) for text in texts for match in _NUMBER.finditer(text)}
    return sorted(found)[:_MOST_NUMBERS]


def table(headers: Sequence[str], names: Iterable[str], known: Iterable[int]) -> str:
    """Return the C file with the values of the ioctls, which only the headers know, and with the numbers.

    `headers` are paths from the folder that the compiler includes.
    """
    includes = "".join(f'#include "{header}"\n' for header in headers)
    rows = "".join(f'#ifdef {name}\n\t{{ "{name}", {name} }},\n#endif\n' for name in names)
    listed = ", ".join(f"{number}ull" for number in known)
    return _TABLE.format(includes=includes, rows=rows, numbers=f"{listed}, " if listed else "")


_TABLE = """\
#include <linux/types.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
typedef __u8 u8; typedef __u16 u16; typedef __u32 u32; typedef __u64 u64;
typedef __s8 s8; typedef __s16 s16; typedef __s32 s32; typedef __s64 s64;
#define __user
{includes}
struct named {{ const char *name; unsigned long value; }};
const struct named fuzz_ioctls[] = {{
{rows}	{{ 0, 0 }}
}};
const unsigned fuzz_ioctls_count = sizeof(fuzz_ioctls) / sizeof(*fuzz_ioctls) - 1;
const unsigned long long fuzz_numbers[] = {{ {numbers}0 }};
const unsigned fuzz_numbers_count = sizeof(fuzz_numbers) / sizeof(*fuzz_numbers) - 1;
"""
