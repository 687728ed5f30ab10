"""Build an image from a distribution's signed packages with mmdebstrap(1), without root and without mounts on the host.

apt verifies every package against the distribution's archive keys. The result has the layout of a cloud image:
GPT, an EFI system partition with the signed boot chain, an ext4 root with cloud-init.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import CommandFailed, ImageError, LabError
from kmlab.common.events import Deadline, printable
from kmlab.host.disk import disks
from kmlab.host.packages import debs
from kmlab.host.packages.package_archive import PackageImage
from kmlab.host.process import command, host_packages

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
"""The files of the EFI partition. The removable-media path needs no boot entry in the firmware's variables."""
FACTS = "/var/lib/kmlab/facts"
"""A file in the image with lines NAME=VALUE."""
_HOST_KEYS, _KEYRINGS = Path("/etc/apt/trusted.gpg.d"), Path("/usr/share/keyrings")
_SIGNED_BY = (
    'ls "$1"/etc/apt/trusted.gpg.d/* > /dev/null 2>&1 || sed --in-place '
    '"s|^deb http|deb [signed-by=/usr/share/keyrings/{distribution}-archive-keyring.gpg] http|" '
    '"$1/etc/apt/sources.list"'
)
"""Name the keyring in the image's sources, if its apt trusts no key by itself (Debian 13 and later)."""
_KEPT_LINES = 100
"""The last lines of output that are kept, to find the cause of a failure."""


def build(image: PackageImage, target: Path, deadline: Deadline, on_line: Callable[[str], None]) -> dict[str, str]:
    """Build `image` as the qcow2 file `target`, with temporary files in its folder. Return the content of FACTS."""
    folder = target.parent
    root = folder / "root.img"
    unpack(image, root, deadline, on_line)
    files = {}
    for place, source in _BOOT_FILES[image.arch].items():
        files[place] = folder / Path(place).name
        disks.read_from_filesystem(root, source, files[place], deadline)
    grub_cfg = folder / "grub.cfg"
    grub_cfg.write_text(
        "search --no-floppy --label kmlab-root --set root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"
    )
    files[f"EFI/{image.distribution}/grub.cfg"] = grub_cfg
    facts = folder / "facts"
    disks.read_from_filesystem(root, FACTS, facts, deadline)
    values = dict(line.split("=", 1) for line in facts.read_text("ascii").splitlines())
    disks.make_disk(target, root=root, esp=files, deadline=deadline)
    for scratch in (root, facts, *files.values()):
        scratch.unlink()
    return values


def unpack(image: PackageImage, root: Path, deadline: Deadline, on_line: Callable[[str], None]) -> None:
    """Unpack the packages with apt, and let the hook make a file system of them in the new file `root`."""
    # In the namespace the builder is another user without access to the user's folders, so it gets only the open
    # file.
    script = base64.b64encode(image.hook.encode()).decode()
    lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def add_line(line: str) -> None:
        # mmdebstrap prints the whole hook, which does not help the user.
        if script not in line:
            lines.append(line.rstrip())
        on_line("I: making the file system" if script in line else line)

    with (
        root.open("w+b") as file,
        command.inheritable(file.fileno()) as handle,
        _trusted_keys(image) as keys,
    ):
        file.truncate(image.root_size)
        os.fchmod(file.fileno(), 0o666)
        argv = [
            "mmdebstrap",
            f"--mode={_mode()}",
            "--format=null",
            "--variant=apt",
            f"--architectures={debs.NAMES[image.arch]}",
            f"--keyring={keys}",
            '--aptopt=APT::Install-Recommends "0"',
            '--aptopt=Acquire::Retries "3"',
            *(['--aptopt=Acquire::Check-Valid-Until "false"'] if image.expired_indexes else []),
            # The image can be rebuilt, so syncing to the disk is not needed.
            "--dpkgopt=force-unsafe-io",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=path-include=/usr/share/locale/locale.alias",
            f"--include={','.join(image.packages)}",
            f"--customize-hook={_SIGNED_BY.format(distribution=image.distribution)}",
            f'--customize-hook=echo {script} | base64 --decode | sh -s -- "$1" /proc/self/fd/{handle}',
            image.suite,
            os.devnull,
        ]
        try:
            with _builder_folder(root.parent) as scratch:
                command.run(
                    argv,
                    deadline=deadline,
                    on_line=add_line,
                    cwd=root.parent,
                    environment={"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "TMPDIR": str(scratch)},
                    pass_files=(handle,),
                )
        except CommandFailed as error:
            what = f"could not build {image.suite} for {image.arch}: {_cause(error, lines)}"
            raise ImageError(what, _space_hint(root, lines) or _hint("\n".join(lines))) from None
    root.chmod(0o600)


_BUILDER = "builder"
"""The name of the file that says where the builder's temporary folder is."""
_BUILDER_PREFIX = "kmlab-builder-"


@contextlib.contextmanager
def _builder_folder(work: Path) -> Iterator[Path]:
    """Yield a folder for all temporary files of the builder, and remove it. `sweep` does so after a killed kmlab.

    It is next to `work` if every user can reach that, because the builder is another user; otherwise where the system
    has its temporary files.
    """
    near = work.parent
    reachable = all(place.stat().st_mode & 0o001 for place in (near, *near.parents))
    folder = Path(tempfile.mkdtemp(prefix=_BUILDER_PREFIX, dir=near if reachable else None))
    try:
        (work / _BUILDER).write_text(str(folder), encoding="utf-8", errors="surrogateescape")
        folder.chmod(0o755)
        yield folder
    finally:
        _remove(folder)
        (work / _BUILDER).unlink(missing_ok=True)


def sweep(work: Path) -> None:
    """Remove the temporary folder of a builder that was killed, if it worked for this folder."""
    with contextlib.suppress(OSError):
        folder = Path((work / _BUILDER).read_text(encoding="utf-8", errors="surrogateescape"))
        if folder.name.startswith(_BUILDER_PREFIX) and folder.is_dir() and not folder.is_symlink():
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder in which the builder left files of users that only its namespace has."""
    with contextlib.suppress(LabError):
        paths.remove_tree(folder)
    if folder.exists():
        with contextlib.suppress(LabError):
            command.run(["mmdebstrap", "--unshare-helper", "rm", "-rf", "--", folder], deadline=Deadline(60))


@contextlib.contextmanager
def _trusted_keys(image: PackageImage) -> Iterator[Path]:
    """Yield a folder with the keys that may sign the image's packages: those of the host's apt, and the image's.

    The host's keyring of the distribution is included, even an old one: otherwise mmdebstrap would add a `signed-by`
    for it, and apt would ignore all other keys.
    """
    with tempfile.TemporaryDirectory(prefix="kmlab-keys-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        host_keys = [path for end in ("asc", "gpg") for path in sorted(_HOST_KEYS.glob(f"*.{end}"))]
        own = _KEYRINGS / f"{image.distribution}-archive-keyring.gpg"
        for number, path in enumerate([*host_keys, own, *image.keyrings]):
            # The builder is another user without access to the user's folders, so it gets copies.
            with contextlib.suppress(FileNotFoundError):
                copy = folder / f"{number}{path.suffix}"
                shutil.copyfile(path, copy)
                copy.chmod(0o644)
        yield folder


def default_servers() -> tuple[str, str] | None:
    """Return the servers that mmdebstrap uses for Debian and for its security updates; None if it does not say so."""
    with contextlib.suppress(LabError, OSError):
        script = Path(command.find("mmdebstrap")).read_text(encoding="utf-8", errors="replace")
        found = [re.search(rf"\${name}\s*=\s*'(https?://[^'\s]+/{end})';", script) for name, end in _SERVERS.items()]
        if all(found):
            main, security = (match[1] for match in found if match)
            return main, security
    return None


_SERVERS = {"mirror": "debian", "secmirror": "debian-security"}
"""Variables of mmdebstrap(1), a Perl program, and the ends of their values."""


def _mode() -> str:
    """Return mmdebstrap's mode: unshare, which never touches the host's mounts; auto for root without namespaces.

    Only root tries unshare(1) first, because some distributions allow namespaces to mmdebstrap but not to unshare(1).
    """
    if os.geteuid() == 0:
        try:
            command.run(["unshare", "--user", "--map-root-user", "--mount", "true"], deadline=Deadline(10))
        except CommandFailed:
            return "auto"
    return "unshare"


def _cause(error: CommandFailed, lines: Sequence[str]) -> str:
    """Return the first error message of the failed program."""
    if error.code is None:
        return str(error)
    full = [line for line in lines if paths.disk_full_hint(line)]
    errors = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
    others = [line for line in lines if line and not line.startswith(("I: ", "W: "))]
    return printable(next(iter([*full, *errors, *others[-1:]]), str(error)), 300)


def _space_hint(root: Path, lines: Sequence[str]) -> str | None:
    hint = paths.disk_full_hint("\n".join(lines))
    if hint is None or shutil.disk_usage(root.parent).free < paths.MIN_FREE_SPACE:
        return hint
    return f"free space in {tempfile.gettempdir()}, where the packages are unpacked, or set TMPDIR to a larger disk"


def _hint(output: str) -> str | None:
    unknown_key = re.search(r"NO_PUBKEY ([0-9A-F]{8,40})", output)
    if unknown_key:
        return (
            f"this host does not have the key {unknown_key[1]}, which signed the archive: update its keyring package "
            "(debian-archive-keyring, ubuntu-keyring), or save the key in images/keys/ next to lab.yaml, and add its "
            "name to `archive_keys` in a copy of the image's entry"
        )
    if "unshare" in output and "not permitted" in output.lower():
        return "this host forbids user namespaces: see `kmlab doctor`, or run kmlab image build as root"
    if "newuidmap" in output or "subuid" in output:
        return (
            f"install {host_packages.package_of('uidmap')}, and add a range of user ids: "
            "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"
        )
    if "Could not resolve" in output or "Failed to fetch" in output or "Unable to connect" in output:
        return "check that the package archive is reachable; apt's own configuration and http_proxy are used"
    if "is expired" in output:
        return (
            "the mirror is outdated: to accept it, set `expired_indexes: true` in a copy of the image's entry, in "
            "images/ next to lab.yaml"
        )
    if "arch-test" in output or "qemu user emulation" in output:
        return "this host cannot run that architecture's programs: sudo apt-get install arch-test qemu-user-static"
    if "Unable to locate package" in output:
        return "the archive does not have this package: check the image's entry in images/"
    return None
