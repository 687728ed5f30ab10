"""The Host of a world that is not there, and what a test says to it beforehand and asks it afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from kmlab.errors import GuestUnreachable, KmlabError
from kmlab.events import Deadline
from kmlab.host import Host
from kmlab.host.accel import Acceleration
from kmlab.host.command import run as run_program
from kmlab.host.hypervisor import Hypervisor
from kmlab.host.mmdebstrap import PackageImage
from kmlab.host.ssh import Shell
from kmlab.testing.archive import FakeArchive
from kmlab.testing.hypervisor import HOST_KEY, FakeHypervisor
from kmlab.testing.machine import Machine
from kmlab.testing.modules import RELEASE, FakeModule
from kmlab.testing.shell import FakeShell


class World:
    """All that the doors open on. Guests end with the `with` block."""

    def __init__(self, *modules: FakeModule, release: str = RELEASE, accel: str = "kvm") -> None:
        self.modules = {module.name: module for module in modules}
        self.release = release
        self.acceleration = Acceleration(accel, "this world is a fake")
        self.asked: list[str] = []
        """What was asked of the doors, in order: build-image, start, save, restore, stop."""
        self.lines: list[str] = []
        """Every line that a guest's shell was given."""
        self.refusals: dict[str, KmlabError] = {}
        """What a door raises instead, by what is asked; `shell` is ssh, `agent` the channel."""
        self.seeds: list[bytes] = []
        """Of every base that was baked."""
        self.first_boot: tuple[str, ...] = ()
        """What the console of a first boot says, instead of what it does when a base is well baked."""
        self.indexes: dict[str, str] = {}
        """The archive of every image: a Packages file for each suite."""
        self.holders = b""
        """What a guest says to the question of who holds a module, in the words of kernel/holders."""
        self.taints_unsigned = False
        """Whether a kernel that asks for no signature sets its taint E over a module, as most do."""
        self.monitor: dict[str, str] = {}
        """What QEMU's monitor says, by what it is asked; nothing to the rest."""
        self.silent = False
        """Whether firmware and kernel of a guest that starts say nothing."""
        self.machines: dict[tuple[Path, str], Machine] = {}
        self._next_port = 40000

    @property
    def host(self) -> Host:
        def accelerate(wanted: str, arch: str) -> Acceleration:
            return self.acceleration

        return Host(
            self._open,
            self._connect,
            self._reach,
            accelerate,
            self._build_image,
            lambda folder, arch: FakeArchive(self, folder, arch),
        )

    def ask(self, what: str) -> None:
        """Note it, and refuse where that was wanted."""
        self.asked.append(what)
        if what in self.refusals:
            raise self.refusals[what]

    def new_port(self) -> int:
        self._next_port += 1
        return self._next_port

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines.values():
            machine.end()

    @contextlib.contextmanager
    def _open(self, uri: str, root: Path, deadline: Deadline) -> Iterator[Hypervisor]:
        yield FakeHypervisor(self, root)

    @contextlib.contextmanager
    def _connect(self, port: int, host_key: str, identity: Path, deadline: Deadline) -> Iterator[Shell]:
        if "shell" in self.refusals:
            raise self.refusals["shell"]
        found = [m for m in list(self.machines.values()) if m.port == port and m.runs]
        if not found or host_key != HOST_KEY:
            raise GuestUnreachable(f"no answer on ssh (127.0.0.1:{port}): nothing listens")
        yield FakeShell(self, found[0])

    @contextlib.contextmanager
    def _reach(self, path: Path, deadline: Deadline) -> Iterator[Shell]:
        if "agent" in self.refusals:
            raise self.refusals["agent"]
        found = [m for m in list(self.machines.values()) if m.channel == path and m.runs]
        if not found:
            raise GuestUnreachable(f"no way to the guest's agent ({path})")
        yield FakeShell(self, found[0])

    def _build_image(
        self, image: PackageImage, target: Path, deadline: Deadline, on_line: Callable[[str], None]
    ) -> None:
        self.ask("build-image")
        on_line(f"I: unpacking {image.suite}")
        run_program(["qemu-img", "create", "-q", "-f", "qcow2", target, "1M"], deadline=deadline)
