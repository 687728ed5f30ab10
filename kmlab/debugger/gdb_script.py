"""Write the script that gdb runs first: connect, load symbols, and stop where it was asked to.

What comes from a guest (section names, addresses) is checked before it is written into a script.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_SECTION = re.compile(r"\.?[A-Za-z_][\w.]{0,99}", re.ASCII)
_ARCHITECTURES = {"x86_64": ("i386:x86-64", "rdi"), "aarch64": ("aarch64", "x0")}
"""gdb's name of each architecture, and the register of a function's first argument."""
_NOT_IN_FILE = (".text", ".symtab", ".strtab")
"""Sections that gdb wants first, or that the kernel has moved."""
STOP_FUNCTION = "do_init_module"
"""The kernel calls this function with the module, after it has placed it and before it calls its init function."""


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module's file on this host, and where its sections are in the guest's memory."""

    name: str
    file: Path
    sections: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What gdb debugs."""

    arch: str
    socket: Path
    kernel: Path | None = None
    kernel_at: int = 0
    """The address of the .text section of `kernel`."""
    vmlinux: Path | None = None
    vmlinux_offset: int = 0
    """How far the running kernel is from where vmlinux was linked (KASLR)."""
    modules: Sequence[LoadedModule] = ()
    sources: Mapping[PurePosixPath, Path] = field(default_factory=dict)
    """Folders in the guest, and where their sources are on this host."""
    stop_at_load: tuple[str, Path] | None = None
    """Stop when this module is loaded: its name in the kernel, and its file."""


def script(target: Target) -> str:
    """Return the commands, one a line."""
    architecture, _ = _ARCHITECTURES[target.arch]
    lines = [
        "set confirm off",
        "set pagination off",
        f"set architecture {architecture}",
        # First, because this stops the guest.
        f"target remote {target.socket}",
    ]
    for inside, here in target.sources.items():
        lines.append(f"set substitute-path {_quoted(inside)} {_quoted(here)}")
    if target.vmlinux is not None:
        lines.append(f"add-symbol-file {_quoted(target.vmlinux)} -o {target.vmlinux_offset:#x}")
    elif target.kernel is not None:
        lines.append(f"add-symbol-file {_quoted(target.kernel)} {target.kernel_at:#x}")
    lines += [add_symbols(module.file, module.sections) for module in target.modules if module.sections]
    if target.stop_at_load is not None:
        lines.append(_stop_script(target, *target.stop_at_load))
    return "\n".join([*lines, "set confirm on", "set pagination on"]) + "\n"


def add_symbols(file: Path, sections: Mapping[str, int]) -> str:
    """Return gdb's command for a module whose sections are at these addresses."""
    places = [
        f"-s {name} {at:#x}" for name, at in sections.items() if _SECTION.fullmatch(name) and name not in _NOT_IN_FILE
    ]
    text = [f"{sections['.text']:#x}"] if ".text" in sections else []
    return " ".join(["add-symbol-file", _quoted(file), *text, *places])


def parse_sections(listed: str) -> dict[str, int]:
    """Return the sections in `grep . /sys/module/NAME/sections/*`, such as `/sys/…/.text:0xffffffffc0261000`."""
    found = re.findall(r"^\S*/sections/(\S+?):(0x[0-9a-f]{1,16})$", listed, re.MULTILINE)
    return {name: int(at, 16) for name, at in found if _SECTION.fullmatch(name) and int(at, 16)}


def _quoted(path: Path | PurePosixPath) -> str:
    """Return a path as one argument of a gdb command (buildargv in libiberty)."""
    escaped = re.sub(r'(["\\])', r"\\\1", str(path))
    return f'"{escaped}"'


def _stop_script(target: Target, name: str, file: Path) -> str:
    """Return the commands that stop when the kernel is about to call the module's init function.

    The module is not listed in /sys for a guest that stands still, so gdb reads the addresses of its sections from the
    kernel's own record: struct module_sect_attrs begins with a struct attribute_group since Linux 2.6.16.
    """
    register = _ARCHITECTURES[target.arch][1]
    return _STOP.format(
        function=STOP_FUNCTION, register=register, name=json.dumps(name), file=json.dumps(str(file))
    ).strip()


_STOP = """
python
import gdb

KMLAB_NAME, KMLAB_FILE = {name}, {file}

def kmlab_quoted(path):
    return '"' + path.replace('\\\\', '\\\\\\\\').replace('"', '\\\\"') + '"'

def kmlab_module():
    return gdb.parse_and_eval("(struct module *)${register}")

class KmlabLoad(gdb.Breakpoint):
    def stop(self):
        return kmlab_module()["name"].string() == KMLAB_NAME

def kmlab_sections():
    group = kmlab_module()["sect_attrs"].cast(gdb.lookup_type("struct attribute_group").pointer())
    listed, long = group["bin_attrs"], gdb.lookup_type("unsigned long")
    for number in range(1000):
        each = listed[number]
        if int(each) == 0:
            return
        # Since Linux 6.14 the address is the attribute's own datum, before it stood behind the attribute.
        at = int(each["private"]) or int((each + 1).cast(long.pointer()).dereference())
        yield each["attr"]["name"].string(), at

gdb.execute("add-symbol-file " + kmlab_quoted(KMLAB_FILE) + " 0", to_string=True)
kmlab_stop = KmlabLoad("{function}")
gdb.execute("continue")
kmlab_found = dict(kmlab_sections())
kmlab_stop.delete()
gdb.execute("remove-symbol-file -a 0", to_string=True)
# The kernel has no record of a section that is empty, as .text may be.
kmlab_text = ["%#x" % kmlab_found.pop(".text")] if ".text" in kmlab_found else []
kmlab_named = [pair for pair in kmlab_found.items() if pair[0] not in (".symtab", ".strtab")]
kmlab_places = kmlab_text + ["-s %s %#x" % pair for pair in kmlab_named]
gdb.execute("add-symbol-file %s %s" % (kmlab_quoted(KMLAB_FILE), " ".join(kmlab_places)), to_string=True)
print("kmlab: %s is in place, and its init function has not run yet" % KMLAB_NAME)
end
"""
