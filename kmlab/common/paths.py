"""Where everything lies: the only code that names the files of the state, the cache and the runs.

Follows the XDG base directory specification. State is what a person would miss (keys, guests);
the cache can always be made again (images, bases, checkpoints).
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


LEAST_ROOM = 64 << 20
"""Bytes; a disk with less is as good as full."""

_MAKE_ROOM = "make room (`kmlab image prune` removes what no lab uses), or set XDG_CACHE_HOME to a larger disk"

_FULL = (errno.ENOSPC, errno.EDQUOT)

SET_ASIDE = ".before-"
"""In the name of the folder of a key pair that another one has replaced."""


def state_home() -> Path:
    """`$XDG_STATE_HOME/kmlab`."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def cache_home() -> Path:
    """`$XDG_CACHE_HOME/kmlab`."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def _xdg(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    return (Path(value) if value.startswith("/") else Path.home() / fallback) / "kmlab"


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """The files of one guest. All of them go when the guest is destroyed."""

    root: Path

    @property
    def record(self) -> Path:
        """What is known of the running guest: port, host key, domain, base, dirty or clean."""
        return self.root / "guest.json"

    @property
    def lock(self) -> Path:
        """Beside the folder, not in it: a lock must outlive what it guards."""
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
    def known_hosts(self) -> Path:
        return self.root / "known_hosts"

    @property
    def keyring(self) -> Path:
        """Which keys the guest's kernel knows and whether it asks for a signature; stays when the guest stops."""
        return self.root / "keyring.json"

    @property
    def synced(self) -> Path:
        """What was sent of each module's folder; true only of the guest that it was sent to."""
        return self.root / "synced"

    @property
    def builds(self) -> Path:
        """What was built on the host: a folder for each module, which outlives a restore of the guest."""
        return self.root / "build"

    @property
    def libvirt(self) -> Path:
        """The root folder of this guest's own embedded libvirt."""
        return self.root / "v"


@dataclass(frozen=True, slots=True)
class LabFiles:
    """The files of one lab: `$XDG_STATE_HOME/kmlab/labs/NAME-HASH`, the hash being that of lab.yaml's path."""

    root: Path
    beside: Path
    """The folder of lab.yaml."""

    @classmethod
    def of(cls, name: str, lab_yaml: Path) -> LabFiles:
        digest = hashlib.sha256(os.fsencode(lab_yaml.resolve())).hexdigest()[:6]
        return cls(state_home() / "labs" / f"{name}-{digest}", lab_yaml.resolve().parent)

    def guest(self, name: str) -> GuestFiles:
        return GuestFiles(self.root / name)

    def guests(self) -> list[str]:
        """Names of the guests that have a folder, whatever lab.yaml says today."""
        with contextlib.suppress(OSError):
            return sorted(p.name for p in self.root.iterdir() if p.is_dir())
        return []

    @property
    def keys(self) -> Path:
        """The lab's own key pair for modules (MOK); 0700."""
        return state_home() / "keys" / self.root.name

    @property
    def runs(self) -> Path:
        return self.beside / ".kmlab" / "runs"


def identity_key() -> Path:
    """The private ssh key by which this person's guests know them; its public half is beside it (`.pub`)."""
    return state_home() / "keys" / "id_ed25519"


def images() -> Path:
    """Verified, read-only images, each with a record beside it."""
    return cache_home() / "images"


def pulled(image: str, arch: str) -> Path:
    """What is known of the last download of an image. It outlives the image: nothing older is taken later on."""
    return state_home() / "images" / f"{image}-{arch}.json"


def downloads() -> Path:
    """Files as a server sent them, whole or not, that nothing may read before they are verified."""
    return cache_home() / "downloads"


def bases() -> Path:
    """One folder a base, named by the hash of everything that went into it."""
    return cache_home() / "bases"


def checkpoints() -> Path:
    """One folder a checkpoint, named by its base and by what could not restore it elsewhere."""
    return cache_home() / "checkpoints"


def toolchains() -> Path:
    """One folder for each base that modules were built for on the host: its compiler, tools and headers."""
    return cache_home() / "toolchains"


def archives() -> Path:
    """One folder for each image that kernels were looked up for: its archive's indexes, renewed when they change."""
    return cache_home() / "archives"


def work() -> Path:
    """Half-made things. Each has a lock while somebody works on it; without one it is rubbish."""
    return cache_home() / "work"


def half_made(name: str) -> str:
    """What the folders of a half-made thing in `work()` begin with: its key, which ends its name."""
    return name[-16:]


def failed_boot() -> Path:
    """The console of the last base or checkpoint that could not be made."""
    return state_home() / "failed-boot.log"


def capabilities() -> Path:
    """What libvirt found out about QEMU, shared by all embedded roots: probing anew costs seconds."""
    return cache_home() / "libvirt"


def acceleration() -> Path:
    """What was measured of this host's accelerators, for one boot of the host."""
    return cache_home() / "accel.json"


def check_socket_path(root: Path) -> None:
    """LabError if libvirt could not bind its sockets under `root`."""
    longest = os.fsencode(root / _LONGEST_SOCKET)
    if len(longest) > SOCKET_PATH_LIMIT:
        raise LabError(
            f"{root}: the path is too long for a socket ({len(longest)} bytes, {SOCKET_PATH_LIMIT} allowed)",
            "set XDG_STATE_HOME (guests) or XDG_CACHE_HOME (bases) to a shorter path, or shorten the names",
        )


def make_folder(folder: Path, mode: int = 0o755) -> Path:
    """`folder`, made if need be; one clear LabError if that cannot be done."""
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
    """Write atomically: readers see the old text or the new one, never a part."""
    make_folder(path.parent)
    try:
        put_in_place(path, text.encode("utf-8", "backslashreplace"), mode)
    except OSError as error:
        hint = _make_room(path) if error.errno in _FULL else None
        raise LabError(f"{path}: cannot write: {error.strerror}", hint) from error


def put_in_place(path: Path, content: bytes, mode: int) -> None:
    """A file whole or not at all, in the place of one that may be there."""
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
    """A value as `read_json` gives it back, also where a text in it is a file's name that is no UTF-8."""
    # Which Python keeps as lone surrogates (PEP 383): write_text writes those as JSON spells them, \udcff.
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value, or None if the file is not there or was cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, of any depth and any rights; gone already is well.

    Raises LabError where something in it cannot be removed.
    """
    try:
        folder_tree.remove_tree(folder)
    except OSError as error:
        raise LabError(f"{printable(str(folder))}: cannot remove this folder: {error.strerror or error}") from error


def digest_of(*parts: object) -> str:
    """A short name for everything that went in: 16 hex digits of SHA-256 over the JSON of `parts`."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def require_space(folder: Path, needed: int, what: str) -> None:
    """LabError unless `needed` bytes are free where `folder` lies."""
    existing, free = _free(folder)
    if free < needed:
        raise LabError(f"{existing}: {what} needs {_size(needed)}, {_size(free)} are free", _make_room(folder))


def _free(folder: Path) -> tuple[Path, int]:
    """The folder, or what there is of its path, and how many bytes are free there."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return existing, shutil.disk_usage(existing).free


def _make_room(place: Path) -> str:
    return _MAKE_ROOM.replace("CACHE", "STATE") if place.is_relative_to(state_home()) else _MAKE_ROOM


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"


def no_room(error: OSError) -> LabError | None:
    """What to say of a write that failed because a disk is full, or a quota; None for any other failure."""
    if error.errno not in (*_FULL, errno.EFBIG):
        return None
    # A write to a file that is open does not say which.
    full = [existing for existing, free in map(_free, (cache_home(), state_home())) if free < LEAST_ROOM]
    place = Path(error.filename) if isinstance(error.filename, str) else next(iter(full), None)
    if place is None:
        return LabError(str(error.strerror), _MAKE_ROOM)
    return LabError(f"{place}: {error.strerror}", _make_room(place))


def room_hint(said: str) -> str | None:
    """What to do about a program's failure, where what it said is that a disk is full, or a quota."""
    return _MAKE_ROOM if any(os.strerror(number) in said for number in _FULL) else None


@contextlib.contextmanager
def published(final: Path, scratch: Path) -> Iterator[Path]:
    """A folder to fill under `scratch`, renamed to `final` only if all went well."""
    make_folder(scratch)
    make_folder(final.parent)
    folder = Path(tempfile.mkdtemp(dir=scratch, prefix=f"{half_made(final.name)}."))
    try:
        yield folder
        if final.exists():
            remove_tree(final)
        folder.rename(final)
    finally:
        if folder.exists():
            remove_tree(folder)
