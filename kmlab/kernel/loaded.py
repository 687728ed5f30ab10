"""A look at a running kernel: its taint, the modules it has loaded, and where their sections lie.

Follows proc(5), /proc/modules; Documentation/admin-guide/sysctl/kernel.rst; and kernel/module/sysfs.c, whose files of
sections can be read by root alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

_TAINTED, _MODULES = "/proc/sys/kernel/tainted", "/proc/modules"
_LINE = re.compile(r"^(\S+) \d+ (-|-?\d{1,10}) (\S+) (Live|Loading|Unloading)\b", re.MULTILINE | re.ASCII)
_SECTION = re.compile(r"/sections/(\.[\w.-]{1,64})")
_TITLE = re.compile(r"^==> (.+) <==$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Listed:
    """A module's line of /proc/modules."""

    refcount: int | None = None
    """None where the kernel cannot unload modules at all."""
    holders: tuple[str, ...] = ()
    """The modules that use it, and `[permanent]` for one that has no exit function."""
    state: str = "Live"
    """Live, Loading or Unloading."""


@dataclass(frozen=True, slots=True)
class Look:
    """What there was at one moment."""

    taint: int
    modules: Mapping[str, Listed]
    sections: Mapping[str, int] = field(default_factory=dict)
    """Where the sections are of the one module that was asked about."""


def look(module: str | None = None) -> str:
    """A line for the guest's shell; it costs one program."""
    # With tail(1), because of all that name each file it is the quickest to start, and it reads a file in one piece:
    # those of sections cannot be read from anywhere but their beginning.
    sections = f" /sys/module/{shlex.quote(module)}/sections/.[!.]*" if module else ""
    return f"tail -n +1 {_TAINTED} {_MODULES}{sections} 2> /dev/null"


def parse_look(text: str) -> Look | None:
    """What the guest said to it; None if that is not even a taint."""
    _, *parts = _TITLE.split(text)
    said = dict(zip(parts[::2], parts[1::2], strict=True))
    taint = said.get(_TAINTED, "").strip()
    if not re.fullmatch("[0-9]{1,20}", taint):
        return None
    modules = {
        name: Listed(int(count) if count != "-" else None, tuple(w for w in users.split(",") if w and w != "-"), state)
        for name, count, users, state in _LINE.findall(said.get(_MODULES, ""))
    }
    places = ((found[1], content.strip()) for at, content in said.items() if (found := _SECTION.search(at)))
    addresses = {name: int(at, 16) for name, at in places if re.fullmatch("0x[0-9a-f]{1,16}", at)}
    return Look(int(taint), modules, {name: at for name, at in addresses.items() if at})
