"""Make the libvirt domain XML of a guest (https://libvirt.org/formatdomain.html).

It is built with ElementTree, never with string templates. Tests compare it with golden files in tests/data/domain/.
"""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kmlab.common.errors import HypervisorError
from kmlab.virt import network
from kmlab.virt.devices import Device, board
from kmlab.virt.firmware import Firmware

AGENT_PORT = "kmlab.agent.0"
"""The virtio-serial port of the agent. In the guest, udev creates /dev/virtio-ports/NAME for it."""

SERIAL_PORTS = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}
"""Linux's name of the first serial port, by architecture. On `virt` it is a PL011 (QEMU's docs/system/arm/virt.rst)."""

SERIAL_DEVICE = "charserial0"
"""The id that libvirt gives QEMU's first serial port."""

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", _QEMU)
_NAMESPACE = uuid.UUID("4f1d3c1e-6e4e-5b52-9c6a-0a6b6d6c6162")


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The properties of one domain."""

    name: str
    arch: str
    """As in `uname -m`: x86_64, aarch64."""
    accel: str
    """kvm or tcg."""
    cpus: int
    memory: int
    """Bytes."""
    firmware: Firmware
    nvram: Path
    disk: Path
    console: Path
    agent: Path
    """The socket on the host for the agent's port."""
    seed: Path | None = None
    """The NoCloud volume, only while a base is baked."""
    disabled_features: tuple[str, ...] = ()
    """CPU features to disable: see `defects`."""
    devices: Mapping[str, Device] = field(default_factory=dict)
    """The devices that lab.yaml adds, by name."""
    qemu_args: tuple[str, ...] = ()
    """Further options for QEMU."""


class Defect(NamedTuple):
    """A CPU feature that some QEMU versions emulate wrongly, so that a guest's kernel must not use it."""

    feature: str
    """libvirt's name for it."""
    arch: str
    fixed: tuple[int, int]
    """The first version of QEMU that emulates it correctly."""


DEFECTS = (
    # cmpxchg16b computed EFLAGS from a stale cc_op: SLUB's fast path then leaves bits of a pointer in them, and traps
    # fire at random. Fixed by QEMU commit 5f0dd8cd33cb ("target/i386: Inline cmpxchg16b") in v8.0. Kernels from 6.5 on
    # crash under QEMU 7.2; they do not use the instruction if the CPU does not have it.
    Defect("cx16", "x86_64", (8, 0)),
)


def defects(arch: str, accel: str, qemu: str) -> tuple[str, ...]:
    """Return the CPU features to disable for guests of this QEMU. `qemu` is the first line of its `--version`."""
    match = re.search(r"version (\d+)\.(\d+)", qemu)
    if accel != "tcg" or match is None:
        return ()
    version = (int(match[1]), int(match[2]))
    return tuple(defect.feature for defect in DEFECTS if defect.arch == arch and version < defect.fixed)


def cpu_model(accel: str) -> str:
    """Return libvirt's CPU mode: the host's CPU under kvm, everything that QEMU can emulate under tcg."""
    return "host-passthrough" if accel == "kvm" else "maximum"


def identifier(name: str) -> str:
    """Return the UUID of a domain's name. It is the same on every host, so that a checkpoint restores on any host."""
    return str(uuid.uuid5(_NAMESPACE, name))


def to_xml(domain: Domain, emulator_path: str) -> str:
    """Return the domain's XML for libvirt."""
    root = ET.Element("domain", type="kvm" if domain.accel == "kvm" else "qemu")
    _text(root, "name", domain.name)
    _text(root, "uuid", identifier(domain.name))
    if domain.arch == "x86_64":
        ET.SubElement(root, "genid")  # QEMU has the device for x86 alone (docs/specs/vmgenid.txt)
    _text(root, "memory", str(domain.memory // 1024), unit="KiB")
    _text(root, "vcpu", str(domain.cpus))
    _boot(root, domain)
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    if domain.arch == "x86_64":
        ET.SubElement(features, "apic")
        ET.SubElement(features, "vmport", state="off")
        ET.SubElement(features, "smm", state="on" if domain.firmware.smm else "off")
        ET.SubElement(features, "vmcoreinfo", state="on")
    cpu = ET.SubElement(root, "cpu", mode=cpu_model(domain.accel), check="none")
    if domain.accel == "kvm" and domain.arch == "x86_64":
        cpu.set("migratable", "on")  # QEMU has the property for x86 alone
    for feature in domain.disabled_features:
        ET.SubElement(cpu, "feature", policy="disable", name=feature)
    ET.SubElement(root, "clock", offset="utc")
    _text(root, "on_poweroff", "destroy")
    _text(root, "on_reboot", "destroy" if domain.seed is None else "restart")
    _text(root, "on_crash", "preserve")
    _devices(root, domain, emulator_path)
    options = ET.SubElement(root, f"{{{_QEMU}}}commandline")
    for option in (
        *network.options(network.OPEN),
        *board.arguments(domain.devices, domain.disk.parent),
        *domain.qemu_args,
    ):
        ET.SubElement(options, f"{{{_QEMU}}}arg", value=option)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def retarget(saved: str, *, nvram: Path, disk: Path, console: Path, agent: Path, reach: str) -> str:
    """Return a saved domain's XML with the files and the network of another guest of the same checkpoint.

    `reach` is one of the choices of `virt/network.py`.
    """
    root = ET.fromstring(saved)
    store = root.find("os/nvram")
    source = root.find("devices/disk/target[@dev='vda']/../source")
    log = root.find("devices/serial/log")
    socket = root.find(f"devices/channel/target[@name='{AGENT_PORT}']/../source")
    options = root.findall(f"{{{_QEMU}}}commandline/{{{_QEMU}}}arg")
    back_ends = [option for option in options if option.get("value") == network.back_end(network.OPEN)]
    if store is None or source is None or log is None or socket is None or len(back_ends) != 1:
        raise HypervisorError("the checkpoint's saved domain is not one of kmlab's")
    store.text = str(nvram)
    source.set("file", str(disk))
    log.set("file", str(console))
    socket.set("path", str(agent))
    back_ends[0].set("value", network.back_end(reach))
    for chain in root.iterfind("devices/disk"):
        for stale in chain.findall("backingStore"):
            chain.remove(stale)
        other = chain.find("source")
        if other is not None and other is not source:
            other.set("file", str(disk.parent / Path(other.get("file", "")).name))
    for port in (*root.findall("devices/serial"), *root.findall("devices/console")):
        port.attrib.pop("tty", None)
        for pty in port.findall("source"):
            port.remove(pty)
    _end_at_reboot(root)
    _skip_cpu_queries(root)
    return ET.tostring(root, encoding="unicode")


def _end_at_reboot(root: ET.Element) -> None:
    """Make QEMU itself end when the guest reboots: during a run there is no libvirt that would end it.

    libvirt starts QEMU with -no-reboot if all three are "destroy" (qemuProcessPrepareAllowReboot in qemu_process.c).
    """
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        element = root.find(event)
        if element is not None:
            element.text = "destroy"


def _skip_cpu_queries(root: ET.Element) -> None:
    """Stop libvirt from querying 400 CPU properties of QEMU, one by one, before a restored guest continues.

    libvirt does so if QEMU supports `unavailable-features` (qemuProcessFetchGuestCPU in its qemu_process.c); otherwise
    it queries two. kmlab does not need the answers. See drvqemu.html, "Control of QEMU capabilities".
    """
    overrides = ET.SubElement(root, f"{{{_QEMU}}}capabilities")
    ET.SubElement(overrides, f"{{{_QEMU}}}del", capability="cpu-unavailable-features")


def console_tty(live: str) -> str | None:
    """Return the host's pty of the interactive console (hvc0), from a running domain's XML."""
    root = ET.fromstring(live)
    for console in root.findall("devices/console"):
        target, source = console.find("target"), console.find("source")
        if target is not None and source is not None and target.get("type") == "virtio":
            return source.get("path")
    return None


def serial_tty(live: str) -> str | None:
    """Return the host's pty of the first serial port, from a running domain's XML."""
    source = ET.fromstring(live).find("devices/serial/source")
    return source.get("path") if source is not None else None


def _boot(root: ET.Element, domain: Domain) -> None:
    boot = ET.SubElement(root, "os")
    _text(boot, "type", "hvm", arch=domain.arch, machine=domain.firmware.machine)
    _text(
        boot,
        "loader",
        str(domain.firmware.code),
        readonly="yes",
        type="pflash",
        **({"secure": "yes"} if domain.firmware.smm else {}),
        **_format(domain.firmware.format),
    )
    _text(boot, "nvram", str(domain.nvram), **_format(domain.firmware.variables_format))
    ET.SubElement(boot, "boot", dev="hd")


def _format(name: str) -> dict[str, str]:
    """Return the attribute for a flash image's format. libvirt before 9.2 only knows raw, and not the attribute."""
    return {} if name == "raw" else {"format": name}


def _devices(root: ET.Element, domain: Domain, emulator_path: str) -> None:
    devices = ET.SubElement(root, "devices")
    _text(devices, "emulator", emulator_path)
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="qcow2", cache="unsafe", discard="unmap")
    ET.SubElement(disk, "source", file=str(domain.disk))
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    if domain.seed:
        seed = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(seed, "driver", name="qemu", type="raw")
        ET.SubElement(seed, "source", file=str(domain.seed))
        ET.SubElement(seed, "target", dev="vdb", bus="virtio")
        ET.SubElement(seed, "readonly")
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "log", file=str(domain.console), append="on")
    ET.SubElement(serial, "target", port="0")
    serial_console = ET.SubElement(devices, "console", type="pty")
    ET.SubElement(serial_console, "target", type="serial", port="0")
    login = ET.SubElement(devices, "console", type="pty")
    ET.SubElement(login, "target", type="virtio", port="1")
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode="bind", path=str(domain.agent))
    ET.SubElement(channel, "target", type="virtio", name=AGENT_PORT)
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    devices.extend(board.elements(domain.devices, domain.disk.parent))
    ET.SubElement(devices, "memballoon", model="none")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
