"""Hold what a test defines about a fake world, and can inspect afterwards."""

from __future__ import annotations

from pathlib import Path

from kmlab.common.errors import KmlabError
from kmlab.host.hypervisor.accel import Acceleration
from kmlab.testing.fake_machine import Machine
from kmlab.testing.fake_modules import RELEASE, Act, FakeModule


class WorldState:
    """The state behind every door of one world."""

    def __init__(self, *modules: FakeModule, release: str = RELEASE, accel: str = "kvm") -> None:
        self.modules = {module.name: module for module in modules}
        self.release = release
        self.acceleration = Acceleration(accel, "this world is a fake")
        self.asked: list[str] = []
        """Calls of the doors, in order: build-image, start, save, restore, stop."""
        self.lines: list[str] = []
        """Every line that a guest's shell received."""
        self.refusals: dict[str, KmlabError] = {}
        """Exceptions that a door raises instead, by call; `shell` is ssh, `agent` the channel."""
        self.refusals_once: dict[str, KmlabError] = {}
        """The same, only for the next call."""
        self.seeds: list[bytes] = []
        """The seed of every base that was baked."""
        self.first_boot: tuple[str, ...] = ()
        """The console output of a first boot, instead of a successful one."""
        self.indexes: dict[str, str] = {}
        """The archive of every image: a Packages file for each suite."""
        self.holders = b""
        """A guest's answer to who holds a module, in the format of kernel/module/users.py."""
        self.drivers = b""
        """A guest's answer to which devices the modules' drivers are bound to (kernel/module/bound_devices.py)."""
        self.files: dict[str, str] = {}
        """Files of a guest's kernel beyond those of every run, by path."""
        self.taints_unsigned = False
        """Whether a kernel that requires no signature sets taint E for an unsigned module, as most do."""
        self.enforces: tuple[str, ...] = ("sig_enforce", "lockdown")
        """What makes a kernel under Secure Boot refuse unsigned modules: any of `sig_enforce` and `lockdown`."""
        self.replaced: set[str] = set()
        """The guest's programs (insmod, rmmod) that are replaced by `true`."""
        self.hides: set[str] = set()
        """Modules that remove themselves from the kernel's list."""
        self.brings: dict[str, tuple[str, ...]] = {}
        """The kernel's own modules that are loaded with a module, by its name."""
        self.stays: set[str] = set()
        """Modules that rmmod does not remove."""
        self.once: dict[str, Act] = {}
        """How a module behaves the next time that it is loaded, and only then."""
        self.monitor: dict[str, str] = {}
        """Answers of QEMU's monitor, by command; empty for other commands."""
        self.boot_panics = 0
        """How many of the next boots end in a panic."""
        self.silent = False
        """Whether firmware and kernel of a starting guest print nothing."""
        self.machines: dict[tuple[Path, str], Machine] = {}
        self._next_port = 40000

    def ask(self, what: str) -> None:
        """Record a call, and raise the exception that the test set for it."""
        self.asked.append(what)
        if what in self.refusals_once:
            raise self.refusals_once.pop(what)
        if what in self.refusals:
            raise self.refusals[what]

    def new_port(self) -> int:
        self._next_port += 1
        return self._next_port
