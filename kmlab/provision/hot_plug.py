"""Plug devices into a running guest and out of it: those that no checkpoint has, and those that a person asks for."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kmlab.common import paths
from kmlab.common.errors import ConfigError, HypervisorError, LabError
from kmlab.common.events import Deadline, EventSink, Note
from kmlab.config.lab import GuestSpec, Lab, parse_device
from kmlab.config.yaml.reader import nearest, quoted
from kmlab.host import Host
from kmlab.host.disk import disks
from kmlab.host.hypervisor.hypervisor import Hypervisor
from kmlab.host.process import locks
from kmlab.provision.guest import Guest, GuestRecord, read_record, write_record
from kmlab.provision.plan.device_setup import check_device, place_of
from kmlab.provision.plan.plan import Plan
from kmlab.virt.devices import Device, board
from kmlab.virt.devices.device import Command, Place, Socket

_REMOVAL = 20.0
"""Seconds for a guest to let a device go: its driver may have work to do."""
_SEEN = 5.0
"""Seconds for a guest's kernel to notice new devices."""
_WAIT = (
    "n=0; for d in {patterns}; do "
    'while set -- $d; [ ! -e "$1" ] && [ $n -lt {tenths} ]; do n=$((n+1)); sleep 0.1; done; '
    '[ -e "$1" ] || echo "$d"; done; udevadm settle --timeout=10 2> /dev/null || true'
)
"""Prints the patterns of those that do not come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugged:
    """A device of a running guest, as devices.json has it."""

    name: str
    words: str
    """Its kind and keys."""
    position: int = 0
    """Its place among the guest's devices, which decides the name that libvirt orders disks by."""
    address: str = ""
    """The guest's PCI address of it, or `usb 15`; empty if it is not known."""
    tty: str = ""
    """The pty of this host at its other end."""
    id: str = ""
    """QEMU's id, if libvirt does not know of it."""
    bus: str = ""
    port: int = 0
    xml: str = ""
    """What libvirt plugged in."""
    after: Sequence[tuple[str, Mapping[str, object]]] = ()
    """Commands for QEMU, when it is gone."""


def words_of(device: Device) -> str:
    """Return a device's kind and keys as one text."""
    options = ", ".join(f"{name}: {value}" for name, value in dataclasses.asdict(device).items() if value is not None)
    return f"{{{device.kind}: {{{options}}}}}" if options else device.kind


def read_plugged(files: paths.GuestFiles) -> dict[str, Plugged]:
    """Read which devices the running guest has, beside those of every guest."""
    value = paths.read_json(files.devices)
    try:
        return {each["name"]: Plugged(**each) for each in value["devices"]} if isinstance(value, dict) else {}
    except (KeyError, TypeError):
        return {}


def changed_by_hand(files: paths.GuestFiles, spec: GuestSpec) -> bool:
    """Return whether the guest has other devices than lab.yaml says."""
    now = {name: plugged.words for name, plugged in read_plugged(files).items()}
    return now != {name: words_of(device) for name, device in spec.named_devices.items()}


def plug_configured(hv: Hypervisor, plan: Plan) -> None:
    """Plug in the devices of lab.yaml that the checkpoint does not have, and record all."""
    plugged: dict[str, Plugged] = {}
    for index, (name, device) in enumerate(plan.spec.named_devices.items()):
        place = place_of(plan.lab, plan.spec, name, device, index)
        if device.in_checkpoint:
            elements = device.elements(place) if device.pluggable else ()
            xml = "".join(ET.tostring(each, encoding="unicode") for each in elements)
            plugged[name] = Plugged(name=name, words=words_of(device), position=index, xml=xml)
        else:
            plugged[name] = _plug(hv, plan.domain_name, device, place, plugged)
    _write(plan.files, plugged)


def _write(files: paths.GuestFiles, plugged: Mapping[str, Plugged]) -> None:
    if not plugged:
        files.devices.unlink(missing_ok=True)
        return
    paths.write_json(files.devices, {"devices": [dataclasses.asdict(each) for each in plugged.values()]})


def _plug(hv: Hypervisor, domain: str, device: Device, place: Place, plugged: Mapping[str, Plugged]) -> Plugged:
    """Plug one device in, and return its record. If it fails, nothing of it stays."""
    made = Plugged(name=place.name, words=words_of(device), position=place.position)
    taken = [Socket(each.bus, each.port) for each in plugged.values() if each.bus]
    socket = board.free_socket(device.socket, hv.xml(domain), taken) if device.socket else Socket("")
    plug = device.plug(place, socket)
    if plug.device is None:
        (element,) = plug.elements
        xml = ET.tostring(element, encoding="unicode")
        hv.attach(domain, xml)
        return dataclasses.replace(made, xml=xml)
    tty = ""
    try:
        for command in plug.before:
            answer = hv.qmp(domain, *command)
            tty = str(answer.get("pty", tty)) if isinstance(answer, dict) else tty
        hv.qmp(domain, *plug.device)
    except HypervisorError:
        for command in plug.after:
            with contextlib.suppress(HypervisorError):
                hv.qmp(domain, *command)
        raise
    address = f"usb {socket.port}" if socket.port else _pci_address(hv, domain, place.id)
    where = {"id": place.id, "bus": socket.bus, "port": socket.port, "after": [tuple(each) for each in plug.after]}
    return dataclasses.replace(made, address=address, tty=tty, **where)  # type: ignore[arg-type]


def _pci_address(hv: Hypervisor, domain: str, device: str) -> str:
    """Return where the guest sees a device: the numbers of the buses are the guest's own."""
    buses: list[Any] = [hv.qmp(domain, "query-pci")]
    while buses:
        for bus in buses.pop() or ():
            for each in bus.get("devices", ()):
                if each.get("qdev_id") == device:
                    return f"0000:{each['bus']:02x}:{each['slot']:02x}.{each['function']:x}"
                buses.append([each["pci_bridge"]] if "pci_bridge" in each else [])
    return ""


def wait_until_seen(guest: Guest, report: EventSink) -> None:
    """Wait until the guest's kernel has noticed the devices that were plugged in, and udev has loaded their drivers."""
    plugged = [each for each in read_plugged(guest.files).values() if each.address]
    if not plugged:
        return
    patterns = " ".join(f"'{_pattern(each.address)}'" for each in plugged)
    answer = guest.run(_WAIT.format(patterns=patterns, tenths=round(10 * _SEEN)), Deadline(4 * _SEEN))
    missing = [each.name for each in plugged if _pattern(each.address) in answer.text.split()]
    if missing:
        why = "it may have no driver of that bus (`kernel: generic` has more)"
        report(Note(guest.record.name, f"its kernel does not see {', '.join(missing)}: {why}"))


def _pattern(address: str) -> str:
    """Return where sysfs has the device."""
    kind, _, port = address.partition(" ")
    return f"/sys/bus/usb/devices/*-{port}" if kind == "usb" else f"/sys/bus/pci/devices/{address}"


def add_device(
    host: Host, lab: Lab, spec: GuestSpec, record: GuestRecord, files: paths.GuestFiles, what: str
) -> Plugged:
    """Plug a device into a running guest: one of lab.yaml that was removed, by name, or a new one."""
    plugged = read_plugged(files)
    configured = spec.named_devices
    if what in configured and what not in plugged:
        name, device = what, configured[what]
    else:
        device = parse_device(what)
        name = board.free_name(device, {*configured, *plugged})
    if not device.pluggable:
        raise ConfigError(
            f"a device of the kind {device.kind} cannot be plugged into a running guest",
            f"write it under `devices:` of guest '{spec.name}' in {lab.file}",
        )
    if len(plugged) >= board.MOST:
        raise ConfigError(f"guest '{spec.name}' has {len(plugged)} devices, and {board.MOST} are possible")
    check_device(name, device, spec.memory)
    positions = (*range(len(configured)), *(each.position for each in plugged.values()))
    free = next(number for number in range(2 * board.MOST) if number not in positions)
    index = list(configured).index(name) if name in configured else free
    place = place_of(lab, spec, name, device, index)
    if device.file_size is not None:
        disks.make_empty(place.file, device.file_size)
    with host.hypervisor(record.uri, files.libvirt, Deadline(_REMOVAL)) as hv:
        made = _plug(hv, record.domain, device, place, plugged)
    _write(files, {**plugged, name: made})
    return made


def remove_device(host: Host, spec: GuestSpec, record: GuestRecord, files: paths.GuestFiles, name: str) -> Plugged:
    """Unplug a device of a running guest, and wait until its kernel has let it go."""
    plugged = read_plugged(files)
    if name not in plugged:
        raise ConfigError(f"guest '{spec.name}' has no device {quoted(name)}", nearest(name, list(plugged), "devices"))
    device = plugged[name]
    if not device.xml and not device.id:
        raise ConfigError(f"'{name}' is part of the machine, and cannot be unplugged while it runs")
    with host.hypervisor(record.uri, files.libvirt, Deadline(_REMOVAL)) as hv:
        if device.id:
            _unplug(hv, record.domain, device)
        else:
            hv.detach(record.domain, device.xml)
    _write(files, {other: each for other, each in plugged.items() if other != name})
    return device


def _unplug(hv: Hypervisor, domain: str, device: Plugged) -> None:
    hv.qmp(domain, "device_del", {"id": device.id})
    deadline = Deadline(_REMOVAL)
    while any(each.get("name") == device.id for each in hv.qmp(domain, "qom-list", {"path": "/machine/peripheral"})):
        if deadline.passed:
            raise LabError(
                f"the guest did not let '{device.name}' go within {_REMOVAL:.0f} s",
                "its driver may hang in its remove function: see `kmlab log`",
            )
        time.sleep(0.1)
    for command in device.after:
        _retry(hv, domain, Command(*command))


def _retry(hv: Hypervisor, domain: str, command: Command) -> None:
    """Send a command for something that QEMU releases a moment after the device."""
    for _ in range(20):
        with contextlib.suppress(HypervisorError):
            hv.qmp(domain, *command)
            return
        time.sleep(0.1)


def mark_crashed(files: paths.GuestFiles, titles: Sequence[str]) -> None:
    """Mark the guest as dirty after its kernel reported a bug, unless a run is in progress, which judges it itself."""
    record = read_record(files)
    if titles and record is not None and locks.is_free(files.lock):
        reason = f"after a change of its devices: {titles[0]}"
        write_record(files, dataclasses.replace(record, state="dirty", reason=reason))
