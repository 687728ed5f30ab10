"""Access the outside world: libvirt, ssh, disks, programs, downloads. One file imports each library."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

# Every libvirt worker process imports this file when it starts, so it must not import anything else.
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from kmlab.common.events import Deadline
    from kmlab.host.channel.ssh import Shell
    from kmlab.host.hypervisor.accel import Acceleration
    from kmlab.host.hypervisor.hypervisor import Hypervisor
    from kmlab.host.packages.package_archive import ArchiveOpener, ImageBuilder, PackageArchive, PackageImage


class Host(NamedTuple):
    """The access to the outside world that a run gets. `api.py` builds the real one, `kmlab.testing` a fake."""

    hypervisor: Callable[[str, Path, Deadline], AbstractContextManager[Hypervisor]]
    shell: Callable[[int, str, Path, Deadline], AbstractContextManager[Shell]]
    agent: Callable[[Path, Deadline], AbstractContextManager[Shell]]
    accelerate: Callable[[str, str], Acceleration]
    build_image: Callable[[ImageBuilder, PackageImage, Path, Deadline, Callable[[str], None]], Mapping[str, str]]
    """Call a distribution's image builder."""
    archive: Callable[[ArchiveOpener, Path, str], PackageArchive]
    """Call a distribution's opener of archives."""


def real_host() -> Host:
    """Return the real host. A library is imported when it is first used."""
    from kmlab.host.channel import agent, ssh
    from kmlab.host.hypervisor import accel, hypervisor

    return Host(
        hypervisor.opened,
        ssh.connected,
        agent.connected,
        accel.choose,
        lambda build_image, *about: build_image(*about),
        lambda open_archive, *about: open_archive(*about),
    )
