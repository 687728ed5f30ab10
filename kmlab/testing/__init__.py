"""Provide fake doors: a Host that needs no libvirt, no QEMU and no ssh.

    with World(FakeModule("hello", load=Act(kernel=("Hello, world.",)))) as world:
        result = run.run(world.host, lab, lab.guest("debian"), module, run.Options(), silent)

Files, locks, qemu-img and the console are real. A waiting program with QEMU's name replaces each QEMU.
"""

from __future__ import annotations

from kmlab.testing.fake_hypervisor import HOST_KEY
from kmlab.testing.fake_machine import Machine
from kmlab.testing.fake_modules import RELEASE, Act, FakeModule, module_image
from kmlab.testing.fake_packages import package_file
from kmlab.testing.fake_shell import TEXT, FakeShell
from kmlab.testing.saves import FakeSaves
from kmlab.testing.world import World

__all__ = [
    "HOST_KEY",
    "RELEASE",
    "TEXT",
    "Act",
    "FakeModule",
    "FakeSaves",
    "FakeShell",
    "Machine",
    "World",
    "module_image",
    "package_file",
]
