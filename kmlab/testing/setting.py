"""What a test says of a world beforehand, and may look at afterwards: all that the fake doors open on."""

from __future__ import annotations

from pathlib import Path

from kmlab.common.errors import KmlabError
from kmlab.host.hypervisor.accel import Acceleration
from kmlab.testing.fake_machine import Machine
from kmlab.testing.fake_modules import RELEASE, Act, FakeModule


class WorldState:
    """What is behind every door of one world."""

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
        self.refusals_once: dict[str, KmlabError] = {}
        """The same, the next time alone."""
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
        self.replaced: set[str] = set()
        """The guest's programs, insmod and rmmod, that something has put `true` in place of."""
        self.hides: set[str] = set()
        """Modules that take themselves off the kernel's list."""
        self.once: dict[str, Act] = {}
        """How a module behaves the next time that it is loaded, and not after."""
        self.monitor: dict[str, str] = {}
        """What QEMU's monitor says, by what it is asked; nothing to the rest."""
        self.boot_panics = 0
        """How many of the next boots end in a panic."""
        self.silent = False
        """Whether firmware and kernel of a guest that starts say nothing."""
        self.machines: dict[tuple[Path, str], Machine] = {}
        self._next_port = 40000

    def ask(self, what: str) -> None:
        """Note it, and refuse where that was wanted."""
        self.asked.append(what)
        if what in self.refusals_once:
            raise self.refusals_once.pop(what)
        if what in self.refusals:
            raise self.refusals[what]

    def new_port(self) -> int:
        self._next_port += 1
        return self._next_port
