"""Provide the Host of a fake world."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from kmlab.common.errors import GuestUnreachable
from kmlab.common.events import Deadline
from kmlab.host import Host
from kmlab.host.channel.ssh import Shell
from kmlab.host.hypervisor.accel import Acceleration
from kmlab.host.hypervisor.hypervisor import Hypervisor
from kmlab.host.packages.package_archive import ImageBuilder, PackageImage
from kmlab.host.process.command import run as run_program
from kmlab.testing.fake_archive import FakeArchive
from kmlab.testing.fake_hypervisor import HOST_KEY, FakeHypervisor
from kmlab.testing.fake_shell import FakeShell
from kmlab.testing.setting import WorldState


class World(WorldState):
    """A setting with its doors. Guests end with the `with` block."""

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
            lambda open_archive, folder, arch: FakeArchive(self, folder, arch),
        )

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
        machines = [m for m in list(self.machines.values()) if m.port == port and m.runs and not m.panicked]
        if not machines or host_key != HOST_KEY:
            raise GuestUnreachable(f"no answer on ssh (127.0.0.1:{port}): no server listens")
        yield FakeShell(self, machines[0])

    @contextlib.contextmanager
    def _reach(self, path: Path, deadline: Deadline) -> Iterator[Shell]:
        if "agent" in self.refusals:
            raise self.refusals["agent"]
        machines = [m for m in list(self.machines.values()) if m.channel == path and m.runs]
        if not machines:
            raise GuestUnreachable(f"cannot connect to the guest's agent ({path})")
        yield FakeShell(self, machines[0])

    def _build_image(
        self,
        builder: ImageBuilder,
        image: PackageImage,
        target: Path,
        deadline: Deadline,
        on_line: Callable[[str], None],
    ) -> dict[str, str]:
        self.ask("build-image")
        on_line(f"I: unpacking {image.suite}")
        run_program(["qemu-img", "create", "-q", "-f", "qcow2", target, "1M"], deadline=deadline)
        return {"release": self.release, "host_key": HOST_KEY}
