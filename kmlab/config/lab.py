"""What a person asks for in lab.yaml: guests, modules and what is expected of them (docs: the lab.yaml page).

The dataclasses here are the file's shape: a field's name is its key, a field without a default must be given.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.config.yaml import reader
from kmlab.config.yaml.reader import Lines
from kmlab.config.yaml.types import (
    AnyDigest,
    Column,
    Command,
    CommandLine,
    Digest,
    Duration,
    Identifier,
    ImageName,
    KernelName,
    LibvirtUri,
    ModuleName,
    Name,
    OneLine,
    Package,
    Pattern,
    Serial,
    Size,
    Sysctl,
    Url,
    Version,
    parse_kernel,
    size,
    whole,
)

LAB_FILE = "lab.yaml"
_LONGEST_NAME = 31
"""Of a guest, as `Name` has it: sockets lie beneath a folder of that name."""

Outcome = Literal[
    "pass",
    "warning",
    "test-failed",
    "unload-failed",
    "load-failed",
    "build-failed",
    "oops",
    "hang",
    "panic",
    "lost",
    "error",
]
"""What a run can come to, worst last."""
Arch = Literal["x86_64", "aarch64"]
ParamValue = str | int | bool
Param = ParamValue | tuple[ParamValue, ...]


def load_lab(path: Path) -> Lab:
    """The lab that the file describes; ConfigError with file:line for whatever is wrong in it."""
    # Not resolve(): beside a symbolic link to lab.yaml the modules are where the person sees them.
    place = Path(os.path.abspath(path))
    document = reader.read(path)
    lab = document.into(Lab, path=place, file=document.file, lines=document.lines())
    if not lab.guests:
        raise lab.error(("guests",), "a lab needs a guest", "add `debian: {image: debian-12}` under guests:")
    lab = replace(lab, default=lab.default or tuple(lab.guests)[:1])
    _check_guest_names(lab)
    _check_matrix(lab)
    return lab


def find_lab(start: Path) -> Path | None:
    """The lab.yaml in the folder `start` or in the nearest one above it."""
    folder = Path(os.path.abspath(start))
    # os.path.isfile, because a folder above that may not be searched is not an error here.
    return next((f for d in (folder, *folder.parents) if os.path.isfile(f := d / LAB_FILE)), None)


def open_lab(start: Path, file: Path | None = None) -> Lab:
    """The lab of the folder `start`, or the one that `--lab FILE` names."""
    found = file or find_lab(start)
    if found is None:
        raise ConfigError(
            f"no {LAB_FILE} in {printable(os.path.abspath(start))} or in a folder above it",
            "kmlab init writes one",
        )
    return load_lab(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUrl:
    """An image of the person's own choice on the network."""

    url: Url
    sha256: Digest | None = None
    unverified: bool = False
    """The person accepts whatever the server sends."""
    family: Name | None = None
    """Whose recipe makes a guest of it; None where the guest has a `recipe`."""
    arch: Arch | None = None
    """Of the image's machine code; None: the same as this host's."""

    def __post_init__(self) -> None:
        if self.sha256 is None and not self.unverified:
            raise ConfigError(
                "needs a sha256, as nothing else says which bytes are right",
                "add `sha256: …`, or `unverified: true` to boot whatever the server sends",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePath:
    """An image of the person's own on this host."""

    path: Path
    """As written, relative to the lab's folder."""
    sha256: Digest | None = None
    family: Name | None = None
    arch: Arch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNamed:
    """An image of the catalogue, and what this lab trusts where its publisher signs nothing."""

    name: ImageName
    serial: Serial | None = None
    """The release; None is the newest."""
    arch: Arch | None = None
    """Which of those that the catalogue has; None where there is one, or for the host's own."""
    digest: AnyDigest | None = None
    """Of the image file, as its publisher's sums have it: instead of the catalogue's pin."""
    unverified: bool = False
    """Where nobody vouches for the image, the person accepts whatever the server sends."""

    def __post_init__(self) -> None:
        if self.serial is not None and self.digest is None:
            raise ConfigError("names a release and not its digest", "add `digest: …`, from the publisher's sums")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalKernel:
    """A kernel that the person built."""

    local: Path
    """A build directory, or packages as `*.deb`; as written, relative to the lab's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSpec:
    """What was asked for of one guest."""

    name: Name
    image: ImageName | ImageUrl | ImagePath | ImageNamed
    """A name of the catalogue, which alone knows whether there is such an image."""
    kernel: KernelName | LocalKernel = "default"
    """default, exact, a version such as 6.12, a package, a flavour or a suite; or {local: DIR}, one's own build."""
    cpus: Annotated[int, whole(1, 64)] = 2
    """Virtual CPUs."""
    memory: Annotated[int, size("256M", "1T")] = 1 << 30
    """The guest's memory, such as 1G."""
    disk: Annotated[int, size("1G", "16T")] | None = None
    """Bytes that the root disk is grown to; None leaves that to the image."""
    secure_boot: bool = False
    """Boot with Secure Boot; modules are signed with the lab's key then."""
    cmdline: CommandLine = ""
    """Added to the kernel's command line."""
    recipe: Name | None = None
    """None is the recipe of the image's family."""
    packages: tuple[Package, ...] = ()
    """Installed besides those of the recipe."""
    sysctls: Mapping[Sysctl, OneLine] = field(default_factory=dict)
    """Set in the guest, such as kernel.panic_on_warn: 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """What a run must come to for the person to call it good."""

    outcome: tuple[Outcome, ...] = ("pass",)
    """Any one of these."""
    kind: OneLine | None = None
    """The kind of the first crash."""
    function: Identifier | None = None
    """The guilty function of the first crash."""
    log: tuple[Pattern, ...] = ()
    """Each is in some line of the run's log; see `yamltypes.matches`."""
    not_log: tuple[Pattern, ...] = ()
    """None is in any line."""
    allow: tuple[Pattern, ...] = ()
    """Warnings that are known and do not count."""
    since: Mapping[Version, Expect] = field(default_factory=dict)
    """What holds instead of all this on kernels from that version on."""

    def on(self, version: tuple[int, int] | None) -> Expect:
        """What holds on a kernel of that version."""
        reached = [since for since in self.since if version is not None and since <= version]
        return self.since[max(reached)] if reached else self

    def __post_init__(self) -> None:
        if any(other.since for other in self.since.values()):
            raise ConfigError("has a 'since' within a 'since'", "put the versions side by side")
        if not self.outcome:
            raise ConfigError("has an empty list for 'outcome', which no run can meet")
        if self.outcome == ("pass",) and (self.kind or self.function):
            raise ConfigError("names a crash, yet its outcome is pass", "add `outcome: oops`, or what it ends in")


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A folder with a Kbuild file or a Makefile, and how to run it."""

    name: ModuleName
    source: Path
    """As written: relative to the lab's folder."""
    params: Mapping[Identifier, Param] = field(default_factory=dict)
    """A list is an array parameter. Numbers that are not plain decimals stay text, as 0x10 and 010 do."""
    exercise: Command | None = None
    """Runs as root in the module's folder in the guest, between load and unload."""
    expect: Expect = field(default_factory=Expect)
    """What a run must come to."""
    timeout: Duration | None = None
    """Seconds for each step of a run."""
    guests: tuple[Name, ...] | None = None
    """None is the lab's default."""
    keep: bool = False
    """Left loaded at the end of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """One lab.yaml."""

    path: Path
    """The absolute path of lab.yaml; not a key, like `file` and `lines`."""
    file: str = LAB_FILE
    """What errors call it."""
    lines: Lines = field(default_factory=dict, repr=False, compare=False)

    name: Name
    """The lab's name."""
    guests: Mapping[Name, GuestSpec]
    """The guests by their names."""
    default: tuple[str, ...] = ()
    """The guests of a command that names none; load_lab puts the first guest where the file says nothing."""
    modules: Mapping[ModuleName, Module] = field(default_factory=dict)
    """The modules by their names. A folder with a Makefile or a Kbuild file runs without an entry, too."""
    libvirt: LibvirtUri = "embedded"
    """embedded, or a libvirt URI such as qemu:///session."""
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    """How guests are run: auto is KVM where it works, else emulation."""
    build: Literal["auto", "guest", "sandbox"] = "auto"
    """Where modules are built."""
    matrix: tuple[Column, ...] = ()
    """What `kmlab test` runs in: each a guest, a guest's name and a kernel as GUEST@KERNEL, or a kernel alone."""
    mirror: Url | None = None
    """Stands for the publishers' servers; `{host}` in it is the publisher's."""
    vmcore: Literal["auto", "always", "never"] = "auto"
    vmcore_max: Size = 2 << 30
    """Bytes; a larger dump is not kept."""
    keep_runs: Annotated[int, whole(1, 1_000_000)] = 50
    """How many runs' folders stay."""
    keep_runs_size: Size = 2 << 30
    """And how large they are together, at most."""
    allow: tuple[Pattern, ...] = ()
    """Warnings known in all modules."""

    @property
    def folder(self) -> Path:
        """The folder that every relative path in the file starts from."""
        return self.path.parent

    def guest(self, name: str) -> GuestSpec:
        """The guest of that name; `debian@6.12` is the guest debian with another kernel."""
        plain, at, kernel = name.partition("@")
        if at and kernel:
            return _with_kernel(self.guest(plain), kernel)
        if name not in self.guests:
            hint = reader.nearest(name, self.guests, "guests")
            raise ConfigError(f"there is no guest {reader.quoted(name)} in {self.file}", hint)
        return self.guests[name]

    def columns(self, guests: Iterable[str], matrix: Iterable[str]) -> list[GuestSpec]:
        """The guests of a matrix: a kernel alone stands for each of `guests` with it. Each once, in that order."""
        names: list[str] = []
        for column in matrix:
            whole = "@" in column or column in self.guests
            names += [column] if whole else [f"{guest}@{column}" for guest in guests]
        return list({spec.name: spec for spec in map(self.guest, names)}.values())

    def module_for(self, directory: Path) -> Module:
        """The entry whose source is that folder, else a plain module named after the folder.

        Of several entries for one folder it is the one of the folder's name, or else the first. Where there is no such
        folder it may be an entry's name.
        """
        if str(directory) in self.modules and not os.path.exists(directory):
            return self.modules[str(directory)]
        wanted = os.path.realpath(directory)
        called = os.path.basename(wanted)
        entries = [m for m in self.modules.values() if os.path.realpath(self.locate(m.source)) == wanted]
        for module in entries:
            if module.name == called:
                return module
        name = re.sub("[^A-Za-z0-9_.+-]", "-", called).lstrip(".+-")[:64] or "module"
        return entries[0] if entries else Module(name=name, source=Path(os.path.abspath(directory)))

    def locate(self, path: Path) -> Path:
        """Where a path that lab.yaml names is on this host; `~` is the person's home."""
        return self.folder / os.path.expanduser(path)

    def where(self, *keys: str) -> str:
        """`"lab.yaml:6"`, where those keys stand: `lab.where("guests", "debian", "image")`."""
        return reader.where(self.file, self.lines, *keys)

    def error(self, keys: Iterable[str], message: str, hint: str | None = None) -> ConfigError:
        """For what only turns out later, such as an image that the catalogue does not know."""
        return ConfigError(f"{self.where(*keys)}: {message}", hint)


def _with_kernel(spec: GuestSpec, kernel: str) -> GuestSpec:
    """A guest of its own, named after both."""
    try:
        asked = parse_kernel(kernel)
    except ConfigError as error:
        raise ConfigError(f"{reader.quoted(f'{spec.name}@{kernel}')} {error.message}", error.hint) from None
    if asked == spec.kernel:
        return spec
    name = f"{spec.name}@{re.sub('[^A-Za-z0-9.+-]', '_', asked)}"
    if len(name) > _LONGEST_NAME or not name.endswith(f"@{asked}"):
        # What the name does not say, its end does.
        digest = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:4]
        name = f"{name[: _LONGEST_NAME - 5]}_{digest}"
    return replace(spec, name=name, kernel=asked)


def _check_matrix(lab: Lab) -> None:
    for index, column in enumerate(lab.matrix):
        at, (guest, another, _) = ("matrix", str(index)), column.partition("@")
        if another and guest not in lab.guests:
            hint = reader.nearest(guest, lab.guests, "guests")
            raise lab.error(at, f"'matrix' names {reader.quoted(guest)}, which is no guest", hint)
        if column in lab.matrix[:index]:
            raise lab.error(at, f"'matrix' names '{column}' twice", "remove one")


def _check_guest_names(lab: Lab) -> None:
    asked: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [(("default",), lab.default, "'default'")]
    for name, module in lab.modules.items():
        if module.guests is not None:
            asked.append((("modules", name, "guests"), module.guests, f"'guests' of module '{name}'"))
    for keys, names, what in asked:
        for index, guest in enumerate(names):
            at = (*keys, str(index))
            if guest not in lab.guests:
                hint = reader.nearest(guest, lab.guests, "guests")
                raise lab.error(at, f"{what} names {reader.quoted(guest)}, which is no guest", hint)
            if guest in names[:index]:
                raise lab.error(at, f"{what} names '{guest}' twice", "remove one")
