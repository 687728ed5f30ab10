"""A look at a running kernel: its taint, the modules it has loaded, and where their sections lie.

Follows proc(5), /proc/modules; Documentation/admin-guide/sysctl/kernel.rst; and kernel/module/sysfs.c, whose files of
sections can be read by root alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_TAINTED, _MODULES = "/proc/sys/kernel/tainted", "/proc/modules"
_LINE = re.compile(
    r"^(\S+) \d+ (-|-?\d{1,10}) (\S+) (Live|Loading|Unloading)\b(?: \S+(?: \((\w+)[+-]?\))?)?", re.MULTILINE | re.ASCII
)
_SECTION = re.compile(r"/sections/(\.[\w.-]{1,64})")
_AREA = re.compile(r"^0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16})\s+\d+ (\S+)", re.MULTILINE)
_TITLE = re.compile(r"^==> (.+) <==$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProcModule:
    """A module's line of /proc/modules."""

    refcount: int | None = None
    """None where the kernel cannot unload modules at all."""
    holders: tuple[str, ...] = ()
    """The modules that use it, and `[permanent]` for one that has no exit function."""
    state: str = "Live"
    """Live, Loading or Unloading."""
    taints: str = ""
    """The letters of the taints that it brought: O for one from outside the kernel's tree."""


@dataclass(frozen=True, slots=True)
class KernelState:
    """What there was at one moment."""

    taint: int
    modules: Mapping[str, ProcModule]
    sections: Mapping[str, int] = field(default_factory=dict)
    """Where the sections are of the one module that was asked about."""

    @property
    def out_of_tree(self) -> frozenset[str]:
        """The modules from outside the kernel's tree."""
        return frozenset(name for name, listed in self.modules.items() if "O" in listed.taints)


def has_module_at(vmallocinfo: str, address: int) -> bool:
    """Return whether the memory at an address still belongs to a module, by /proc/vmallocinfo."""
    for start, end, caller in _AREA.findall(vmallocinfo):
        if int(start, 16) <= address < int(end, 16):
            return re.search(r"\b(?:load_module|module_alloc|move_module|execmem_alloc)", caller) is not None
    return False


def state_files(module: str | None = None) -> list[str]:
    """Return the files to look at, as patterns of glob(7); a module's sections are among them."""
    known = module is not None and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", module)
    return [_TAINTED, _MODULES, *([f"/sys/module/{module}/sections/.[!.]*"] if known else [])]


def parse_kernel_state(text: str) -> KernelState | None:
    """Return what was found there, each file under a title as tail(1) writes it; None if that is not even a taint."""
    _, *parts = _TITLE.split(text)
    said = dict(zip(parts[::2], parts[1::2], strict=True))
    taint = said.get(_TAINTED, "").strip()
    if not re.fullmatch("[0-9]{1,20}", taint):
        return None
    modules = {
        name: ProcModule(
            int(count) if count != "-" else None, tuple(w for w in users.split(",") if w and w != "-"), state, taints
        )
        for name, count, users, state, taints in _LINE.findall(said.get(_MODULES, ""))
    }
    places = ((found[1], content.strip()) for at, content in said.items() if (found := _SECTION.search(at)))
    addresses = {name: int(at, 16) for name, at in places if re.fullmatch("0x[0-9a-f]{1,16}", at)}
    return KernelState(int(taint), modules, {name: at for name, at in addresses.items() if at})
