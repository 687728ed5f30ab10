"""A cloud image of the shape of Ubuntu 24.04's, put together of Debian's packages as no Ubuntu archive is at hand.

GPT with a BIOS boot partition, an EFI system partition, /boot apart, and the root as the first partition at the disk's
end, where it can be grown; GRUB behind shim, cloud-init, netplan, sshd behind a socket; no make and no headers. Unlike
Canonical's it has a compiler, which the guest would install for a minute.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from kmlab.common import paths
from kmlab.common.events import Deadline
from kmlab.config import catalog
from kmlab.host.packages import mmdebstrap
from kmlab.host.packages.package_archive import PackageImage
from kmlab.host.process import command

_MIB = 1 << 20
_DISK = 1901
_PARTITIONS = (
    # Number, start and size in MiB, type.
    (14, 1, 4, "21686148-6449-6E6F-744E-656564454649"),
    (15, 5, 64, "U"),
    (16, 70, 120, "BC13C2FF-59E6-4262-A352-B275FD6F7172"),
    (1, 200, 1700, "L"),
)
_BOOT = {
    "EFI/BOOT/BOOTX64.EFI": "/usr/lib/shim/shimx64.efi.signed",
    "EFI/BOOT/grubx64.efi": "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
}
_MENU = "search --no-floppy --label BOOT --set root\nset prefix=($root)/grub\nconfigfile $prefix/grub.cfg\n"


def cloud_image(deadline: Deadline, kernel: str | None = None) -> Path:
    """The image, from the cache where an earlier run made it: building it takes a minute, and dates its files.

    `kernel` is a package instead of the newest of its flavour.
    """
    hook = Path(__file__).with_name("cloudimage.sh").read_text(encoding="utf-8")
    debian = catalog.load_image("debian-12")
    source = debian.architectures["x86_64"].packages
    assert source is not None
    recipe = catalog.load_recipe("debian")
    packages = sorted(
        {*recipe.system, *source.include, kernel or source.kernel, "netplan.io", "systemd-resolved", "python3", "gcc"}
    )
    key = paths.digest_of(hook, packages, _PARTITIONS, _BOOT, _MENU, source.suite)
    final = paths.cache_home() / "tests" / f"cloud-image-{key}.qcow2"
    if not final.exists():
        paths.make_folder(final.parent)
        with tempfile.TemporaryDirectory(prefix="half-", dir=final.parent) as half:
            about = PackageImage(
                distribution="debian",
                suite=source.suite,
                arch="x86_64",
                packages=packages,
                root_size=_DISK * _MIB,
                hook=hook,
            )
            made = _assemble(Path(half), about, deadline)
            os.replace(made, final)
    return final


def _assemble(folder: Path, about: PackageImage, deadline: Deadline) -> Path:
    raw, system, target = folder / "disk.raw", folder / "esp.img", folder / "disk.qcow2"
    mmdebstrap.unpack(about, raw, deadline, lambda line: None)
    with system.open("wb") as file:
        file.truncate(64 * _MIB)
    command.run(["mkfs.vfat", "-F", "32", "-n", "UEFI", system], deadline=deadline)
    command.run(["mmd", "-i", system, "::EFI", "::EFI/BOOT", "::EFI/debian"], deadline=deadline)
    for place, source in _BOOT.items():
        taken = folder / Path(place).name
        command.run(
            ["debugfs", "-R", f"dump {source} {taken.name}", f"disk.raw?offset={200 * _MIB}"],
            cwd=folder,
            deadline=deadline,
        )
        assert taken.stat().st_size, source
        command.run(["mcopy", "-i", system, taken, f"::{place}"], deadline=deadline)
    menu = folder / "grub.cfg"
    menu.write_text(_MENU)
    command.run(["mcopy", "-i", system, menu, "::EFI/debian/grub.cfg"], deadline=deadline)
    layout = folder / "layout"
    rows = (f"disk{n} : start={start}MiB, size={size}MiB, type={kind}\n" for n, start, size, kind in _PARTITIONS)
    layout.write_text("label: gpt\n" + "".join(rows))
    with raw.open("r+b") as disk:
        disk.seek(5 * _MIB)
        disk.write(system.read_bytes())
    command.run(["sfdisk", "-q", "--no-reread", raw], deadline=deadline, stdin=layout)
    command.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, target], deadline=deadline)
    return target
