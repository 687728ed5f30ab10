"""Fake doors: a Host without a world, so that the story is told without libvirt, QEMU's guests or ssh.

    with World(FakeModule("hello", load=Act(kernel=("Hello, world.",)))) as world:
        result = run.run(world.host, lab, lab.guest("debian"), module, run.Options(), silent)

Files, locks, qemu-img and the console are real. In the place of each QEMU a program waits that bears its name.
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
