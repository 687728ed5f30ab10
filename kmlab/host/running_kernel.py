"""Read what this host's own kernel goes by when it is asked to load a module. Nothing is loaded or changed.

A missing or unreadable file is empty: most of this can be read without root, except the list of keys (/proc/keys).
Follows the UEFI variables of shim and of load_uefi.c in security/integrity/platform_certs of the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_GLOBAL, _SHIM, _DATABASE = (
    "8be4df61-93ca-11d2-aa0d-00e098032b8c",
    "605dab50-e046-4300-abb6-3dd810dd8b23",
    "d719b2cb-3d3a-4596-a3bc-dad00e67656f",
)
_ATTRIBUTES = 4
"""Bytes before the value in a file of efivarfs."""
_LARGEST = 16 << 20
_LARGEST_MODULE = 512 << 20
_MOST_TRIED = 200
"""Modules that are looked at, to find one that is not compressed."""


@dataclass(frozen=True, slots=True)
class RunningKernel:
    """What files say about the running kernel, as they say it."""

    release: str
    arch: str
    sig_enforce: str
    """Y or N; empty if the kernel was built without module signatures."""
    lockdown: str
    secure_boot: bool
    mok: bytes
    """MokListRT: the keys that the owner enrolled, as signature lists."""
    database: bytes
    """db: the keys of the firmware, as signature lists."""
    pending: bool
    """Whether a key waits for MokManager at the next boot."""
    keys: str
    """/proc/keys; for users other than root, it has none of the kernel's own."""
    headers: bool
    """Whether the kernel's headers are installed."""
    module: bytes
    """A module that was built with this kernel; empty if there is none, or if all are compressed."""


def read_running_kernel(root: Path = Path("/"), *, release: str = "", arch: str = "") -> RunningKernel:
    """Read the state of this host, from the files below `root`."""
    uname = os.uname()
    release, arch = release or uname.release, arch or uname.machine
    efi, modules = root / "sys/firmware/efi", root / "lib/modules" / release
    return RunningKernel(
        release=release,
        arch=arch,
        sig_enforce=_text(root / "sys/module/module/parameters/sig_enforce"),
        lockdown=_text(root / "sys/kernel/security/lockdown"),
        secure_boot=_variable(efi, "SecureBoot", _GLOBAL)[-1:] == b"\x01",
        mok=_read(efi / "mok-variables/MokListRT") or _variable(efi, "MokListRT", _SHIM),
        database=_variable(efi, "db", _DATABASE),
        pending=os.path.exists(efi / f"efivars/MokNew-{_SHIM}"),
        keys=_text(root / "proc/keys"),
        headers=os.path.isdir(modules / "build"),
        module=next(_plain_modules(modules / "kernel"), b""),
    )


def _variable(efi: Path, name: str, vendor: str) -> bytes:
    return _read(efi / f"efivars/{name}-{vendor}")[_ATTRIBUTES:]


def _plain_modules(folder: Path) -> Iterator[bytes]:
    found = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            found += 1
            if found > _MOST_TRIED:
                return
            if name.endswith((".ko", ".ko.xz", ".ko.gz")) and (content := _read(Path(parent, name), _LARGEST_MODULE)):
                yield content


def _text(path: Path) -> str:
    return _read(path).decode("utf-8", "replace").strip()


def _read(path: Path, most: int = _LARGEST) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError:
        return b""
