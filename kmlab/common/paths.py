"""Name and write the files of the state, the cache and the runs. No other code names them.

Follows the XDG base directory specification. The state cannot be replaced (keys, guests);
the cache can always be rebuilt (images, bases, checkpoints).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmlab.common import folder_tree
from kmlab.common.errors import LabError
from kmlab.common.events import printable

SOCKET_PATH_LIMIT = 107
"""Bytes in a Unix socket's path, sun_path less its terminating zero (unix(7))."""

_LONGEST_SOCKET = "lib/domain-99-kmlab/monitor.sock"
"""The longest socket that libvirt's embedded driver makes under its root."""


MIN_FREE_SPACE = 64 << 20
"""Bytes; a disk with less free space counts as full."""

_FREE_SPACE_HINT = (
    "free some space (`kmlab image prune` removes what no lab uses), or set XDG_CACHE_HOME to a larger disk"
)

_FULL = (errno.ENOSPC, errno.EDQUOT)

SET_ASIDE = ".before-"
"""Part of the folder's name of a key pair that was replaced by another one."""


def state_home() -> Path:
    """Return `$XDG_STATE_HOME/kmlab`."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def cache_home() -> Path:
    """Return `$XDG_CACHE_HOME/kmlab`."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def _xdg(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    return (Path(value) if value.startswith("/") else Path.home() / fallback) / "kmlab"


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """The files of one guest. `kmlab destroy` removes all of them."""

    root: Path

    @property
    def record(self) -> Path:
        """The running guest's port, host key, domain, base and state (dirty or clean), as JSON."""
        return self.root / "guest.json"

    @property
    def lock(self) -> Path:
        """The lock. It is next to the folder, not in it: a lock must outlive what it guards."""
        return self.root.with_name(self.root.name + ".lock")

    @property
    def disk(self) -> Path:
        return self.root / "disk.qcow2"

    @property
    def nvram(self) -> Path:
        return self.root / "nvram.fd"

    @property
    def console(self) -> Path:
        """Every byte of the first serial port since the domain started."""
        return self.root / "console.log"

    @property
    def agent(self) -> Path:
        """The socket of the channel to the guest's agent."""
        return self.root / "agent"

    @property
    def devices(self) -> Path:
        """The devices that lab.yaml or a command has added to the running guest, as JSON."""
        return self.root / "devices.json"

    @property
    def known_hosts(self) -> Path:
        return self.root / "known_hosts"

    @property
    def keyring(self) -> Path:
        """The keys that the guest's kernel trusts, and whether it requires a signature. Kept when the guest stops."""
        return self.root / "keyring.json"

    @property
    def synced(self) -> Path:
        """What was copied of each module's folder. Valid only for the guest that received it."""
        return self.root / "synced"

    @property
    def debug(self) -> Path:
        """The files and places of the modules that the last run loaded, for a debugger in a guest that hangs."""
        return self.synced / "debug"

    @property
    def builds(self) -> Path:
        """The host's builds: one folder for each module, kept when the guest is restored."""
        return self.root / "build"

    @property
    def libvirt(self) -> Path:
        """The root folder of this guest's own embedded libvirt."""
        return self.root / "v"


@dataclass(frozen=True, slots=True)
class LabFiles:
    """The files of one lab: `$XDG_STATE_HOME/kmlab/labs/NAME-HASH`, with the hash of lab.yaml's path."""

    root: Path
    lab_folder: Path
    """The folder of lab.yaml."""

    @classmethod
    def of(cls, name: str, lab_yaml: Path) -> LabFiles:
        digest = hashlib.sha256(os.fsencode(lab_yaml.resolve())).hexdigest()[:6]
        return cls(state_home() / "labs" / f"{name}-{digest}", lab_yaml.resolve().parent)

    def guest(self, name: str) -> GuestFiles:
        return GuestFiles(self.root / name)

    def guests(self) -> list[str]:
        """Return the names of the guests that have a folder, even if lab.yaml no longer has them."""
        with contextlib.suppress(OSError):
            return sorted(p.name for p in self.root.iterdir() if p.is_dir())
        return []

    @property
    def keys(self) -> Path:
        """The lab's own key pair for modules (MOK); 0700."""
        return state_home() / "keys" / self.root.name

    @property
    def runs(self) -> Path:
        """The folders of the runs: next to lab.yaml, or with the state if that folder is not writable."""
        beside = self.lab_folder / ".kmlab"
        writable = os.access(beside if beside.exists() else self.lab_folder, os.W_OK | os.X_OK)
        return beside / "runs" if writable else state_home() / "runs" / self.root.name


def identity_key() -> Path:
    """Return the user's private ssh key for all guests. Its public half is next to it (`.pub`)."""
    return state_home() / "keys" / "id_ed25519"


def images() -> Path:
    """Return the folder of verified, read-only images, each with a record next to it."""
    return cache_home() / "images"


def pull_record(image: str, arch: str) -> Path:
    """Return the record of the last download of an image. It stays when the image goes, to reject older ones."""
    return state_home() / "images" / f"{image}-{arch}.json"


def downloads() -> Path:
    """Return the folder of files as a server sent them, complete or not. They must be verified before use."""
    return cache_home() / "downloads"


def bases() -> Path:
    """Return the folder of bases: one folder each, named by the hash of its inputs."""
    return cache_home() / "bases"


def checkpoints() -> Path:
    """Return the folder of checkpoints: one each, named by its base and the host's parts it depends on."""
    return cache_home() / "checkpoints"


def toolchains() -> Path:
    """Return the folder of toolchains: compiler, tools and headers of a base, for builds on the host."""
    return cache_home() / "toolchains"


def leases() -> Path:
    """Return the folder of what guests use of the cache: one file for each guest, of any state home."""
    return cache_home() / "leases"


def kernels() -> Path:
    """Return the folder of kernels that were built from a distribution's sources: one folder each."""
    return cache_home() / "kernels"


def kernel_builds() -> Path:
    """Return the folder of the build trees of unfinished kernels, so that an interrupted build goes on."""
    return cache_home() / "kernel-builds"


def archives() -> Path:
    """Return the folder of apt indexes: one folder for each image whose kernels were looked up."""
    return cache_home() / "archives"


def known_kernels() -> Path:
    """Return the list of the kernels' names that were seen in archives, for completion in the shell."""
    return cache_home() / "kernels.json"


def work() -> Path:
    """Return the folder of incomplete artifacts. Each is locked while it is made; unlocked ones are garbage."""
    return cache_home() / "work"


def work_prefix(name: str) -> str:
    """Return the prefix of an artifact's folders in `work()`: its key, which ends its name."""
    return name[-16:]


def failed_boot() -> Path:
    """Return the console log of the last base or checkpoint that could not be made."""
    return state_home() / "failed-boot.log"


def capabilities() -> Path:
    """Return libvirt's cache of QEMU's capabilities, shared by all embedded roots, because probing takes seconds."""
    return cache_home() / "libvirt"


def acceleration() -> Path:
    """Return the measurements of this host's accelerators, valid for one boot of the host."""
    return cache_home() / "accel.json"


def check_socket_path(root: Path) -> None:
    """Raise LabError if libvirt could not bind its sockets under `root`."""
    longest = os.fsencode(root / _LONGEST_SOCKET)
    if len(longest) > SOCKET_PATH_LIMIT:
        raise LabError(
            f"{root}: the path is too long for a socket ({len(longest)} bytes, {SOCKET_PATH_LIMIT} allowed)",
            "set XDG_STATE_HOME (guests) or XDG_CACHE_HOME (bases) to a shorter path, or shorten the names",
        )


def make_folder(folder: Path, mode: int = 0o755) -> Path:
    """Create `folder` if it does not exist, and return it. Raise LabError if it cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise LabError(
            f"{folder}: cannot make this folder: {error.strerror}",
            "kmlab keeps its files under XDG_STATE_HOME and XDG_CACHE_HOME: make them writable or set others",
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LabError(f"{folder}: this folder is not writable", "make it writable, or set XDG_STATE_HOME")
    return folder


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a text atomically: readers see the old text or the new one, never a part."""
    make_folder(path.parent)
    try:
        replace_file(path, text.encode("utf-8", "backslashreplace"), mode)
    except OSError as error:
        hint = _free_space_hint(path) if error.errno in _FULL else None
        raise LabError(f"{path}: cannot write: {error.strerror}", hint) from error


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file atomically; replace an existing one. Raise OSError if it cannot be written."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, so that `read_json` returns the same, including file names that are not UTF-8."""
    # Python stores such bytes as lone surrogates (PEP 383). write_text escapes them as JSON does: \udcff.
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value, or None if the file is missing or truncated."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, if it exists, of any depth and with any permissions.

    Raise LabError if something in it cannot be removed.
    """
    try:
        folder_tree.remove_tree(folder)
    except OSError as error:
        raise LabError(f"{printable(str(folder))}: cannot remove this folder: {error.strerror or error}") from error


def digest_of(*parts: object) -> str:
    """Return the first 16 hex digits of SHA-256 over the JSON of `parts`."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise LabError unless `needed` bytes are free on the disk of `folder`."""
    existing, free = _free(folder)
    if free < needed:
        raise LabError(f"{existing}: {what} needs {_size(needed)}, {_size(free)} are free", _free_space_hint(folder))


def _free(folder: Path) -> tuple[Path, int]:
    """Return the deepest existing part of a folder's path, and how many bytes are free there."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return existing, shutil.disk_usage(existing).free


def _free_space_hint(place: Path) -> str:
    return _FREE_SPACE_HINT.replace("CACHE", "STATE") if place.is_relative_to(state_home()) else _FREE_SPACE_HINT


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"


def disk_full_error(error: OSError) -> LabError | None:
    """Return the error for a write that failed because a disk or a quota is full; None for any other failure."""
    if error.errno not in (*_FULL, errno.EFBIG):
        return None
    # The error of a write to an open file does not name the file.
    full = [existing for existing, free in map(_free, (cache_home(), state_home())) if free < MIN_FREE_SPACE]
    place = Path(error.filename) if isinstance(error.filename, str) else next(iter(full), None)
    if place is None:
        return LabError(str(error.strerror), _FREE_SPACE_HINT)
    return LabError(f"{place}: {error.strerror}", _free_space_hint(place))


def disk_full_hint(output: str) -> str | None:
    """Return the hint for a failed program whose output reports a full disk or quota; None for any other output."""
    return _FREE_SPACE_HINT if any(os.strerror(number) in output for number in _FULL) else None


@contextlib.contextmanager
def atomic_folder(final: Path, scratch: Path) -> Iterator[Path]:
    """Yield a new folder under `scratch`, and rename it to `final` if the block succeeds; remove it otherwise."""
    make_folder(scratch)
    make_folder(final.parent)
    folder = Path(tempfile.mkdtemp(dir=scratch, prefix=f"{work_prefix(final.name)}."))
    try:
        yield folder
        if final.exists():
            remove_tree(final)
        folder.rename(final)
    finally:
        if folder.exists():
            remove_tree(folder)
