"""Provide a hypervisor without libvirt; it replaces host/hypervisor/hypervisor.py."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kmlab.common.errors import HypervisorError
from kmlab.host.hypervisor.hypervisor import Hypervisor
from kmlab.provision.plan.artifact import SSH
from kmlab.testing.fake_machine import Machine
from kmlab.testing.setting import WorldState

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFakeFake"
"""The host key of every base's sshd."""


class FakeHypervisor(Hypervisor):
    """A hypervisor without libvirt."""

    def __init__(self, world: WorldState, root: Path) -> None:
        self._world, self._root = world, root

    def start(self, xml: str) -> None:
        self._world.ask("start")
        machine = self._begin(xml)
        if machine.baking:
            *_, seed = (source.get("file", "") for source in ET.fromstring(xml).iterfind("devices/disk/source"))
            self._world.seeds.append(Path(seed).read_bytes())
            words = (f"kernel {self._world.release}", f"hostkey {HOST_KEY}", f"done {self._world.release}")
            for line in self._world.first_boot or tuple(f"<5>kmlab-bake: {word}" for word in words):
                machine.say(line, facility=1)
        elif self._world.boot_panics:
            self._world.boot_panics -= 1
            machine.say("<0>Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)")
            machine.say(
                "<0>---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0) ]---"
            )
        elif not self._world.silent:
            machine.say(f"<5>Linux version {self._world.release}")

    def version(self) -> int:
        return 9_000_000

    def save(self, name: str, image: Path) -> None:
        self._world.ask("save")
        image.write_text(self._machine(name).xml, encoding="utf-8")
        self._machine(name).end()

    def restore(self, image: Path, change: Callable[[str], str]) -> None:
        self._world.ask("restore")
        self._begin(change(image.read_text(encoding="utf-8")))

    def dump(self, name: str, target: Path) -> None:
        self._world.ask("dump")
        if not self._machine(name).runs:
            raise HypervisorError(f"Domain is not running: {name}")
        pieces = [(0, b"KDUMP   " + bytes(4088)), (8192, self._machine(name).name.encode()), (-1, b"")]
        body = b"".join(struct.pack(">qq", at, len(content)) + content for at, content in pieces)
        target.write_bytes(b"makedumpfile".ljust(4096, b"\0") + body)

    def stop(self, name: str) -> None:
        self._world.ask("stop")
        if (self._root, name) in self._world.machines:
            self._machine(name).end()

    def runs(self, name: str) -> bool:
        return self._machine(name).runs

    def xml(self, name: str) -> str:
        return self._machine(name).xml

    def forward(self, name: str, netdev: str, guest_port: int, host_port: int = 0) -> int:
        port = host_port or self._world.new_port()
        if guest_port == SSH:
            self._machine(name).port = port
        return port

    def monitor(self, name: str, command: str) -> str:
        self._world.ask(f"monitor {command}")
        return self._world.monitor.get(command, "")

    def qmp(self, name: str, execute: str, arguments: Mapping[str, object] | None = None) -> Any:
        about = dict(arguments or {})
        self._world.ask(" ".join(["qmp", execute, *([str(about["id"])] if "id" in about else [])]))
        plugged = self._machine(name).plugged
        if execute == "device_add":
            plugged[str(about["id"])] = str(about["bus"])
        elif execute == "device_del":
            plugged.pop(str(about["id"]), None)
        elif execute == "qom-list":
            return [{"name": device} for device in plugged]
        elif execute == "query-pci":
            devices = [{"bus": 9, "slot": n, "function": 0, "qdev_id": device} for n, device in enumerate(plugged)]
            return [{"bus": 0, "devices": devices}]
        return {"pty": "/dev/pts/7"} if execute == "chardev-add" else {}

    def attach(self, name: str, xml: str) -> None:
        self._world.ask(f"attach {ET.fromstring(xml).tag}")

    def detach(self, name: str, xml: str) -> None:
        self._world.ask(f"detach {ET.fromstring(xml).tag}")

    def _begin(self, xml: str) -> Machine:
        machine = Machine(xml, self._root)
        self._world.machines[self._root, machine.name] = machine
        machine.console.touch()
        return machine

    def _machine(self, name: str) -> Machine:
        if (self._root, name) not in self._world.machines:
            raise HypervisorError(f"Domain not found: {name}")
        return self._world.machines[self._root, name]
