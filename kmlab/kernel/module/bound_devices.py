"""Find which devices a module's drivers are bound to (Documentation/driver-api/driver-model/binding.rst).

The kernel links a driver with its module in both directions: /sys/bus/BUS/drivers/NAME/module, and
/sys/module/MODULE/drivers/BUS:NAME (module_add_driver() in drivers/base/module.c).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import NamedTuple

from kmlab.common.events import printable

_MOST_DRIVERS, _MOST_DEVICES = 64, 256
_REGISTERS = re.compile(
    rb"\0(?:\w*_)?(?:register_(?:\w+_)?drivers?(?:_owner)?|drivers?_register|driver_probe|usb_composite_probe)\0"
)
_QUESTION = (
    'for m in {modules}; do for d in /sys/module/$m/drivers/*; do [ -d "$d" ] || continue; '
    'printf \'%s\\0%s\\0\' "$m" "${{d##*/}}"; '
    'for l in "$d"/*; do [ -L "$l" ] && [ -e "$l/driver" ] && printf \'%s\\0\' "${{l##*/}}"; done; printf \'\\0\'; '
    "done; done | head -c 65536"
)
_IDS = re.compile(r"(?:pci:v0000([0-9A-F]{4})d0000([0-9A-F]{4})|usb:v([0-9A-F]{4})p([0-9A-F]{4}))")


class Driver(NamedTuple):
    """A driver that a module has registered. All words are the guest's, made printable."""

    module: str
    bus: str
    name: str
    devices: tuple[str, ...]
    """The names of the devices that it is bound to, such as 0000:05:00.0."""

    @property
    def title(self) -> str:
        return f"{self.bus} driver {self.name}"


def registers_driver(image: bytes) -> bool:
    """Return whether a module's file uses a function of the kernel that registers drivers."""
    return _REGISTERS.search(image) is not None


def question(modules: Iterable[str]) -> str:
    """Return the shell line that prints the modules' drivers and their devices."""
    names = [name for name in modules if re.fullmatch("[A-Za-z0-9_-]{1,64}", name)]
    return _QUESTION.format(modules=shlex.join(names))


def parse_drivers(answer: bytes) -> tuple[Driver, ...]:
    """Parse its output: for each driver the module, BUS:NAME and the devices, each ended by a zero byte."""
    drivers: list[Driver] = []
    for group in answer.split(b"\0\0")[:_MOST_DRIVERS]:
        words = [printable(word.decode("utf-8", "replace"), 100) for word in group.strip(b"\0").split(b"\0")]
        if len(words) >= 2:
            bus, _, name = words[1].partition(":")
            drivers.append(Driver(words[0], bus, name, tuple(words[2 : 2 + _MOST_DEVICES])))
    return tuple(drivers)


def unite(before: Iterable[Driver], after: Iterable[Driver]) -> tuple[Driver, ...]:
    """Return the drivers of two moments, each with the devices of both."""
    united = {driver[:3]: driver for driver in before}
    for driver in after:
        known = united.get(driver[:3])
        devices = tuple(dict.fromkeys((*(known.devices if known else ()), *driver.devices)))
        united[driver[:3]] = driver._replace(devices=devices)
    return tuple(united.values())


def describe_unbound(driver: Driver, aliases: Iterable[str]) -> str:
    """Return the sentence about a driver without a device. `aliases` are the module's, which name its devices."""
    ids = [":".join(filter(None, found.groups())).lower() for alias in aliases if (found := _IDS.match(alias))]
    listed = ", ".join(dict.fromkeys(ids[:5]))
    drives = f" (it drives {listed}{' and more' if len(ids) > 5 else ''})" if listed else ""
    return (
        f"{driver.module} registers the {driver.title}{drives}, and no device was bound to it: "
        "`devices:` or `modprobe:` in lab.yaml can give it one"
    )
