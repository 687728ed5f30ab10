"""An image from a distribution's signed packages, by mmdebstrap(1): no root, no mounts outside a namespace.

apt verifies every package against the distribution's archive keys. The result has the shape of a cloud image:
GPT, an EFI system partition with the signed boot chain, an ext4 root with cloud-init.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import CommandFailed, ImageError
from kmlab.common.events import Deadline, printable
from kmlab.host.disk import disks
from kmlab.host.packages import debs
from kmlab.host.process import command

_BOOT_FILES = {
    "x86_64": {
        "EFI/BOOT/BOOTX64.EFI": "/usr/lib/shim/shimx64.efi.signed",
        "EFI/BOOT/grubx64.efi": "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
        "EFI/BOOT/mmx64.efi": "/usr/lib/shim/mmx64.efi.signed",
    },
    "aarch64": {
        "EFI/BOOT/BOOTAA64.EFI": "/usr/lib/shim/shimaa64.efi.signed",
        "EFI/BOOT/grubaa64.efi": "/usr/lib/grub/arm64-efi-signed/grubaa64.efi.signed",
        "EFI/BOOT/mmaa64.efi": "/usr/lib/shim/mmaa64.efi.signed",
    },
}
"""The removable-media path needs no boot entry in the firmware's variables."""
FACTS = "/var/lib/kmlab/facts"
"""Lines of NAME=VALUE in the file system."""
_WORTH_HEARING = 100
"""Lines before the end, in which it is said what went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageImage:
    """What to build."""

    distribution: str
    """The folder on the EFI partition where the signed GRUB looks for its configuration."""
    suite: str
    arch: str
    packages: Sequence[str]
    root_size: int
    """Bytes of the root file system."""
    hook: str
    """The shell script that turns the unpacked root $1 into a file system in the open file $2, and says in FACTS what
    is in it."""
    expired_indexes: bool = False
    """Whether indexes past their date count."""


def build(image: PackageImage, target: Path, deadline: Deadline, on_line: Callable[[str], None]) -> dict[str, str]:
    """Build `image` as the qcow2 file `target`; scratch files lie in its folder. What the hook said of it."""
    folder = target.parent
    root = folder / "root.img"
    unpack(image, root, deadline, on_line)
    files = {}
    for place, source in _BOOT_FILES[image.arch].items():
        files[place] = folder / Path(place).name
        disks.read_from_filesystem(root, source, files[place], deadline)
    menu = folder / "grub.cfg"
    menu.write_text(
        "search --no-floppy --label kmlab-root --set root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"
    )
    files[f"EFI/{image.distribution}/grub.cfg"] = menu
    facts = folder / "facts"
    disks.read_from_filesystem(root, FACTS, facts, deadline)
    said = dict(line.split("=", 1) for line in facts.read_text("ascii").splitlines())
    disks.make_disk(target, root=root, esp=files, deadline=deadline)
    for scratch in (root, facts, *files.values()):
        scratch.unlink()
    return said


def unpack(image: PackageImage, root: Path, deadline: Deadline, on_line: Callable[[str], None]) -> None:
    """Let apt unpack the packages, and the hook make of them what it will in the new file `root`."""
    # In the namespace the builder is another user, who must not need a way into the person's folders: it gets the
    # open file, and nothing else.
    script = base64.b64encode(image.hook.encode()).decode()
    heard: deque[str] = deque(maxlen=_WORTH_HEARING)

    def hear(line: str) -> None:
        # It repeats the whole hook, which says nothing to a person.
        if script not in line:
            heard.append(line.rstrip())
        on_line("I: making the file system" if script in line else line)

    with root.open("w+b") as file, command.inheritable(file.fileno()) as handle:
        file.truncate(image.root_size)
        os.fchmod(file.fileno(), 0o666)
        argv = [
            "mmdebstrap",
            f"--mode={_mode()}",
            "--format=null",
            "--variant=apt",
            f"--architectures={debs.NAMES[image.arch]}",
            '--aptopt=APT::Install-Recommends "0"',
            '--aptopt=Acquire::Retries "3"',
            *(['--aptopt=Acquire::Check-Valid-Until "false"'] if image.expired_indexes else []),
            # All of it can be made again: nothing waits for the disk.
            "--dpkgopt=force-unsafe-io",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=path-include=/usr/share/locale/locale.alias",
            f"--include={','.join(image.packages)}",
            f'--customize-hook=echo {script} | base64 --decode | sh -s -- "$1" /proc/self/fd/{handle}',
            image.suite,
            os.devnull,
        ]
        try:
            command.run(
                argv,
                deadline=deadline,
                on_line=hear,
                cwd=root.parent,
                environment={"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
                pass_files=(handle,),
            )
        except CommandFailed as error:
            what = f"could not build {image.suite} for {image.arch}: {_cause(error, heard)}"
            raise ImageError(what, _room_hint(root, heard) or _hint("\n".join(heard))) from None
    root.chmod(0o600)


def _mode() -> str:
    """unshare, which never touches the host's mounts; as root, where that is forbidden, mmdebstrap's own choice.

    Nobody else is asked first: some distributions allow namespaces to mmdebstrap and not to unshare(1).
    """
    if os.geteuid() == 0:
        try:
            command.run(["unshare", "--user", "--map-root-user", "--mount", "true"], deadline=Deadline(10))
        except CommandFailed:
            return "auto"
    return "unshare"


def _cause(error: CommandFailed, heard: Sequence[str]) -> str:
    """The first that went wrong, in the words of the program that it went wrong in."""
    if error.code is None:
        return str(error)
    full = [line for line in heard if paths.disk_full_hint(line)]
    errors = [line.removeprefix("E: ") for line in heard if line.startswith("E: ")]
    others = [line for line in heard if line and not line.startswith(("I: ", "W: "))]
    return printable(next(iter([*full, *errors, *others[-1:]]), str(error)), 300)


def _room_hint(root: Path, heard: Sequence[str]) -> str | None:
    hint = paths.disk_full_hint("\n".join(heard))
    if hint is None or shutil.disk_usage(root.parent).free < paths.MIN_FREE_SPACE:
        return hint
    return f"free space in {tempfile.gettempdir()}, where the packages are unpacked, or set TMPDIR to a larger disk"


def _hint(said: str) -> str | None:
    if "newuidmap" in said or "subuid" in said:
        return (
            "sudo apt-get install uidmap, and give yourself a range of user ids: "
            "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"
        )
    if "unshare" in said and "not permitted" in said.lower():
        return "this host forbids user namespaces: see `kmlab doctor`; kmlab image build as root works without"
    if "Could not resolve" in said or "Failed to fetch" in said or "Unable to connect" in said:
        return "is the package archive reachable from here? apt's own configuration and http_proxy are used"
    if "is expired" in said:
        return (
            "the mirror has not been renewed in time. `expired_indexes: true` in a copy of the image's entry, in "
            "images/ beside lab.yaml, takes it as it is"
        )
    if "arch-test" in said or "qemu user emulation" in said:
        return "this host cannot run that architecture's programs: sudo apt-get install arch-test qemu-user-static"
    if "Unable to locate package" in said:
        return "the archive has no such package today: look at the image's entry in images/"
    return None
