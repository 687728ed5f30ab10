"""A kernel's build tree, as `make` leaves it: where in it the parts lie, and what a guest needs of its .config.

Follows Documentation/kbuild/, and what the kernel's own packages take: scripts/package/install-extmod-build,
scripts/Makefile.modinst.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

RELEASE = "include/config/kernel.release"
"""The file that says what `uname -r` will; a tree without it was never built."""
CONFIG, SYMVERS, SYSTEM_MAP, ORDER = ".config", "Module.symvers", "System.map", "modules.order"
BUILTIN = ("modules.builtin", "modules.builtin.modinfo")
SOURCE_ARCH = {"x86_64": "x86", "aarch64": "arm64"}
BOOT_IMAGES = {"x86_64": "arch/x86/boot/bzImage", "aarch64": "arch/arm64/boot/Image"}
"""What GRUB starts, by `uname -m`."""

_RELEASE = re.compile(r"[0-9][A-Za-z0-9.+_-]{0,63}", re.ASCII)
_NOT_NEEDED = ("include/config/", "scripts/atomic/", "scripts/kconfig/", "scripts/package/", "scripts/dtc/")
_BUILD_ONLY = ("include/config/auto.conf", RELEASE)
_BY_NAME = ("Kbuild.platforms", "Platform", "module.lds")

_NEEDED = {
    "y": (
        *("MODULES", "MODULE_UNLOAD", "KALLSYMS", "BLK_DEV_INITRD", "BINFMT_ELF", "BINFMT_SCRIPT", "EFI", "EFI_STUB"),
        *("MULTIUSER", "PRINTK", "PROC_FS", "SYSFS", "TMPFS", "DEVTMPFS", "CGROUPS", "INOTIFY_USER", "SIGNALFD"),
        *("TIMERFD", "EPOLL", "FHANDLE", "NET", "INET", "UNIX98_PTYS", "SYSCTL"),
    ),
    "ym": ("UNIX", "PACKET", "VIRTIO_PCI", "VIRTIO_BLK", "VIRTIO_NET", "VIRTIO_CONSOLE", "EXT4_FS"),
}
"""Options without which a guest does not boot, cannot be reached or loads no module: built in, or as modules too."""
_CONSOLES = {"x86": "SERIAL_8250_CONSOLE", "arm64": "SERIAL_AMBA_PL011_CONSOLE"}


def find_release(text: str) -> str | None:
    """Return the release in the file `RELEASE`; None where that is no name that a path or a package can have."""
    return text.strip() if _RELEASE.fullmatch(text.strip()) else None


def parse_config(text: str) -> dict[str, str]:
    """Options by name, without CONFIG_, that are set: `y`, `m`, or a value."""
    return dict(re.findall(r"^CONFIG_([A-Za-z0-9_]+)=(.*)$", text, re.MULTILINE))


def lacking(config: dict[str, str], source_arch: str) -> list[str]:
    """Return the options that a guest needs and this kernel was built without."""
    wanted = [(name, values) for values, names in _NEEDED.items() for name in names]
    wanted.append((_CONSOLES[source_arch], "y"))
    return [f"CONFIG_{name}" for name, values in wanted if config.get(name, "n") not in values]


def modules_in(order: str) -> Iterator[PurePosixPath]:
    """Return the modules' files by modules.order: `a/b.ko`, in old kernels `kernel/a/b.ko`, since Linux 6.3 `a/b.o`."""
    for line in order.splitlines():
        path = PurePosixPath(line.strip().removeprefix("kernel/")).with_suffix(".ko") if line.strip() else None
        if path is not None and not path.is_absolute() and ".." not in path.parts:
            yield path


def places(source_arch: str) -> tuple[str, ...]:
    """Return the files and folders in which all lies that modules are built with."""
    tools = ("tools/objtool/objtool", "tools/bpf/resolve_btfids/resolve_btfids")
    return ("Makefile", CONFIG, SYMVERS, "include", "scripts", f"arch/{source_arch}", *tools)


def is_for_modules(path: PurePosixPath, source_arch: str) -> bool:
    """Whether modules are built with that file of the tree, which is under one of `places`."""
    text, name = str(path), path.name
    if text in _BUILD_ONLY:
        return True
    if name.endswith((".o", ".a", ".cmd")) or text.startswith(_NOT_NEEDED):
        return False
    if path.parts[0] != "arch":
        return True
    depth = len(path.parts)
    return "include" in path.parts[2:-1] or name in _BY_NAME or (depth == 3 and name.startswith("Makefile"))
