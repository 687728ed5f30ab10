"""Say in the cache itself what a guest uses of it, so that no other home that shares the cache prunes that."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kmlab.common import paths

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MACHINE = Path("/etc/machine-id")


def take_lease(files: paths.GuestFiles, **used: str) -> None:
    """Note that a guest uses these artifacts, each by kind and key, until `end_lease` or the end of the host's boot."""
    value = {"record": str(files.record), "machine": _read(_MACHINE), "boot": _read(_BOOT), "used": used}
    paths.write_json(_place(files), value)


def end_lease(files: paths.GuestFiles) -> None:
    """Note that a guest uses nothing any more."""
    _place(files).unlink(missing_ok=True)


def leased() -> set[str]:
    """Return the keys of everything that a guest uses, whichever home its state is in. Remove leases that ended."""
    keys: set[str] = set()
    for place in list(paths.leases().glob("*.json")):
        value = paths.read_json(place)
        if not isinstance(value, dict) or _has_ended(value):
            place.unlink(missing_ok=True)
            continue
        used = value.get("used")
        keys.update(map(str, used.values()) if isinstance(used, dict) else ())
    return keys


def _has_ended(value: dict[str, object]) -> bool:
    """Return whether the guest of a lease cannot run any more. That of another host is taken to run."""
    if value.get("machine") != _read(_MACHINE):
        return False
    return value.get("boot") != _read(_BOOT) or not _may_exist(Path(str(value.get("record", "/"))).parent)


def _may_exist(folder: Path) -> bool:
    """Return whether a guest's folder exists. If another user forbids the look, it does."""
    try:
        os.stat(folder)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _place(files: paths.GuestFiles) -> Path:
    return paths.leases() / f"{hashlib.sha256(os.fsencode(files.root)).hexdigest()[:16]}.json"


def _read(place: Path) -> str:
    try:
        return place.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
