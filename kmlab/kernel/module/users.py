"""Who has something of a module open, mounted or called, so that it cannot be unloaded; follows proc(5), sysfs(5).

No kernel says which device or file belongs to which module. So kmlab notes what exists before a load: what exists
afterwards in addition belongs to the module.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from kmlab.common.events import printable
from kmlab.kernel.detectors.detectors import DETECTOR_NAMES

NAMES = (
    f"printf '%s\\n' /sys/dev/char/* /sys/dev/block/* /proc/[!0-9]* /sys/kernel/debug/* {DETECTOR_NAMES}; "
    "cat /proc/devices /proc/filesystems"
)
"""A line for the guest's shell that lists devices, files and file systems. It costs one program."""

QUESTION = (
    'cd /proc; exec 2>/dev/null; said() {{ while IFS= read -r line; do printf \'%s\\t%s\\0\' "$1" "$line"; done; }}; '
    "{{ {names}; }} | said name; "
    "find -L [0-9]*/fd [0-9]*/map_files -mindepth 1 -maxdepth 1 \\( -type c -o -type b \\) "
    "-exec stat -L --printf 'device\\t%n\\t%F\\t%t:%T\\0' {{}} +; "
    "find [0-9]*/fd [0-9]*/cwd -maxdepth 1 -type l -lname '/*' -printf 'link\\t%p\\t%l\\0'; "
    "find [0-9]*/map_files -type l -lname '/dev/*' -printf 'link\\t%p\\t%l\\0'; "
    "cat [0-9]*/mountinfo | sort -u | said mount; "
    "grep -H -F '[{module}]' [0-9]*/task/[0-9]*/stack | said stack; "
    "said socket < net/protocols; "
    "grep -H '' [0-9]*/comm | said comm; "
    "grep -aHz '' [0-9]*/cmdline | sed -z 's/^/argument\\t/'"
)
"""A line for the guest's shell, as root, to be completed with `names` and the module's name; answers in records that
end in NUL, as a file's name may have anything else in it.
"""
_MOST = 64
"""Holders that are kept; a guest may say anything."""
_LONGEST = 200
"""Characters in the description of one of them, more or less."""


@dataclass(frozen=True, slots=True)
class Holder:
    """One that keeps a module from being unloaded."""

    what: str
    """What it does, as the rest of a sentence: `has /dev/x open`, `is mounted on /mnt`."""
    remedy: str
    """What to do about it, as an order."""
    pid: int | None = None
    command: str = ""
    """The process's own words for itself."""
    function: str | None = None
    """The function of the module that it is in."""

    def __str__(self) -> str:
        about = f" ({self.command})" if self.command else ""
        return f"process {self.pid}{about} {self.what}" if self.pid is not None else self.what


def question(module: str) -> str:
    """Return what to ask the guest about a module that it would not unload."""
    return QUESTION.format(names=NAMES, module=module)


def parse_names(text: str) -> frozenset[str]:
    """Return what the guest said to NAMES."""
    names, kind = set(), ""
    for line in text.splitlines():
        if line.endswith(" devices:"):
            kind = line.split()[0].lower()
        elif line.startswith("/"):
            names.add(line)
        elif found := re.fullmatch(r" *(\d+) .*", line):
            names.add(f"{kind} {found[1]}")
        elif found := re.fullmatch(r"(?:nodev)?\t([\w.-]+)", line):
            names.add(f"fs {found[1]}")
    return frozenset(names)


def find_holders(answer: bytes, module: str, before: frozenset[str] | None) -> tuple[Holder, ...]:
    """Who holds the module, out of the guest's answer; `before` is what there was before it was loaded.

    Without that only what bears the module's name is taken for its own.
    """
    said = HolderReport(answer)
    news = parse_names("\n".join(said.names)) - before if before is not None else frozenset[str]()
    found: dict[int | str, Holder] = {}
    for holder in (*_mounted(said, news), *_open(said, news, module), *_inside(said, module), *_sockets(said, module)):
        who = holder.what if holder.pid is None else holder.pid
        known = found.get(who)
        if known is None and len(found) < _MOST:
            found[who] = holder
        elif known and holder.what not in known.what and len(known.what) < _LONGEST:
            what = f"{known.what} and {holder.what}"
            found[who] = replace(known, what=what, function=known.function or holder.function)
    return tuple(found.values())


def listed(holders: Iterable[Holder], most: int = 3) -> str:
    """Return the first of them in one sentence, each with its remedy."""
    found = list(holders)
    told = [f"{holder}: {holder.remedy}" for holder in found[:most]]
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(told) + more


class _Device(NamedTuple):
    path: str
    """Below /proc: PID/fd/N or PID/map_files/RANGE."""
    kind: str
    number: str
    """MAJOR:MINOR."""


class HolderReport:
    """The guest's answer, by kinds of records."""

    def __init__(self, answer: bytes) -> None:
        self.names: list[str] = []
        self.devices: list[_Device] = []
        self.links: dict[str, str] = {}
        self.mounts: list[list[str]] = []
        self.stacks: list[str] = []
        self.sockets: list[str] = []
        self.arguments: dict[int, list[str]] = {}
        self.comms: dict[int, str] = {}
        for record in answer.decode("utf-8", "replace").split("\0"):
            kind, _, rest = record.partition("\t")
            self._take(kind, rest)

    def _take(self, kind: str, rest: str) -> None:
        if kind == "name":
            self.names.append(rest)
        elif kind == "device":
            path, what, numbers = (*rest.rsplit("\t", 2), "", "")[:3]
            if re.fullmatch(r"[0-9a-f]{1,8}:[0-9a-f]{1,8}", numbers):
                major, minor = (int(number, 16) for number in numbers.split(":"))
                self.devices.append(
                    _Device(path, "block" if what.startswith("block") else "character", f"{major}:{minor}")
                )
        elif kind == "link":
            path, _, target = rest.partition("\t")
            self.links[path] = target
        elif kind == "mount":
            self.mounts.append(rest.split(" "))
        elif kind == "stack":
            self.stacks.append(rest)
        elif kind == "socket":
            self.sockets.append(rest)
        elif kind in ("comm", "argument"):
            path, _, word = rest.partition(":")
            pid = _pid(path)
            if pid is not None and kind == "comm":
                self.comms[pid] = word
            elif pid is not None:
                self.arguments.setdefault(pid, []).append(word)

    def command(self, pid: int) -> str:
        """Return the process's arguments; a thread of the kernel has only a name."""
        return printable(" ".join(self.arguments.get(pid, [])) or self.comms.get(pid, ""), 60)


def _open(said: HolderReport, news: frozenset[str], module: str) -> Iterator[Holder]:
    """Return the processes that have a device or a file of the module open, or mapped."""
    numbers = {d.path: d for d in said.devices}
    for path in dict.fromkeys((*numbers, *said.links)):
        pid, target = _pid(path), said.links.get(path, "")
        if pid is None:
            continue
        device = numbers.get(path)
        if device is None:
            own = _is_new_file(target, news) or _bears_name(target, module, ("/proc/", "/sys/kernel/debug/"))
        else:
            sysfs = "block" if device.kind == "block" else "char"
            major = device.number.split(":")[0]
            own = f"/sys/dev/{sysfs}/{device.number}" in news or f"{device.kind} {major}" in news
            own = own or _bears_name(target, module, ("/dev/",))
        if own:
            shown = printable(target.removesuffix(" (deleted)") or f"the device {device.number if device else ''}", 120)
            how = f"has {shown} mapped" if "/map_files/" in path else f"has {shown} open"
            yield Holder(how, f"end it in the guest (kill {pid}) or have it close that", pid, said.command(pid))


def _is_new_file(target: str, news: frozenset[str]) -> bool:
    words = target.split("/")
    top = "/".join(words[:3]) if target.startswith("/proc/") else "/".join(words[:5])
    return top.startswith(("/proc/", "/sys/kernel/debug/")) and top in news


def _bears_name(target: str, module: str, below: tuple[str, ...]) -> bool:
    return target.startswith(below) and re.sub(r"[-\d]*$", "", target.rsplit("/", 1)[-1]).replace("-", "_") == module


def _mounted(said: HolderReport, news: frozenset[str]) -> Iterator[Holder]:
    """Mounts of a file system of the module's, or of what lies on a disk of the module's; and who is in there."""
    for words in said.mounts:
        # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
        if len(words) < 10 or "-" not in words[6:]:
            continue
        filesystem = words[words.index("-", 6) + 1]
        if f"fs {filesystem}" in news:
            about = f"its file system {printable(filesystem, 40)}"
        elif f"/sys/dev/block/{words[2]}" in news:
            about = f"a file system on its disk {words[2]}"
        else:
            continue
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words[4])
        shown = printable(place, 120)
        yield Holder(f"{about} is mounted on {shown}", f"umount {shlex.quote(shown)} in the guest")
        for path, target in said.links.items():
            pid = _pid(path)
            if pid is not None and (target == place or target.startswith(f"{place}/")):
                how = f"is in {shown}" if path.endswith("/cwd") else f"has {printable(target, 120)} open"
                yield Holder(how, f"end it in the guest (kill {pid}) or have it close that", pid, said.command(pid))


def _inside(said: HolderReport, module: str) -> Iterator[Holder]:
    """Tasks with a function of the module on their stack: the innermost one of each."""
    seen = set()
    for line in said.stacks:
        found = re.match(r"\d+/task/(\d{1,9})/stack:\[<\w+>\] ([\w.]+)\+0x", line)
        if found and found[1] not in seen:
            seen.add(found[1])
            pid = int(found[1])
            yield Holder(
                f"is in its function {found[2]}()",
                f"let that return, or end it in the guest (kill {pid})",
                pid,
                said.command(_pid(line) or pid),
                found[2],
            )


def _sockets(said: HolderReport, module: str) -> Iterator[Holder]:
    """Sockets of a protocol of the module's: /proc/net/protocols counts them, and names the module."""
    for line in said.sockets:
        words = line.split()
        if len(words) > 7 and words[7] == module and words[2].isdigit() and int(words[2]) > 0:
            count = int(words[2])
            yield Holder(
                f"{count} socket{'s' if count != 1 else ''} of its protocol {printable(words[0], 40)} "
                f"{'are' if count != 1 else 'is'} open",
                "close those",
            )


def _pid(path: str) -> int | None:
    found = re.match(r"(\d{1,9})/", path)
    return int(found[1]) if found else None
