"""Read lab.yaml: guests, modules and the expected results (docs: the lab.yaml page).

The dataclasses here define the file's format: a field's name is its key, and a field without a default is required.
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
from kmlab.config.yaml.schema import Kinds, build
from kmlab.config.yaml.tree import parse
from kmlab.config.yaml.types import (
    AnyDigest,
    Column,
    Command,
    CommandLine,
    ConfigOption,
    DeviceFile,
    Digest,
    Duration,
    Forward,
    GuestFiles,
    HeaderFile,
    Identifier,
    ImageName,
    KernelName,
    LibvirtUri,
    MakeTarget,
    ModprobeLine,
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
from kmlab.virt.devices import KINDS, Device
from kmlab.virt.devices.board import check_devices, name_devices
from kmlab.virt.devices.nic import Nic

LAB_FILE = "lab.yaml"
DEFAULTS = "the lab of defaults"
"""What stands for the file's name in messages about a lab without a lab.yaml (`default_lab`)."""
_LONGEST_NAME = 31
"""Characters of a guest's name, as in `Name`: it is part of the paths of sockets."""

Outcome = Literal[
    "pass",
    "skipped",
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
"""The outcomes of a run, worst last."""
Arch = Literal["x86_64", "aarch64"]
Network = Literal["none", "isolated", "host"]
ParamValue = str | int | bool
Param = ParamValue | tuple[ParamValue, ...]
GuestDevice = Annotated[Device, Kinds("a kind of device", tuple((kind.kind, kind) for kind in KINDS))]


def load_lab(path: Path) -> Lab:
    """Read a lab.yaml. Raise ConfigError with file:line for each mistake in it."""
    # Not resolve(): if lab.yaml is a symbolic link, the modules are next to the link.
    place = Path(os.path.abspath(path))
    document = reader.read(path)
    lab = document.into(Lab, path=place, file=document.file, lines=document.lines())
    if not lab.guests:
        raise lab.error(("guests",), "a lab needs a guest", "add `debian: {image: debian-12}` under guests:")
    lab = replace(lab, libvirt=local_uri(lab.libvirt, lab.where("libvirt")))
    guests = {name: _with_module_packages(lab, spec) for name, spec in lab.guests.items()}
    lab = replace(lab, guests=guests, default=lab.default or tuple(lab.guests)[:1])
    _check_guest_names(lab)
    _check_matrix(lab)
    _check_cables(lab)
    return lab


def parse_device(text: str) -> Device:
    """Return the device that a command names in the words of `devices:`, such as edu or "nvme: 1G"."""
    below = "".join(f"\n  {line}" for line in text.splitlines())
    return build(parse(f"DEVICE:{below}\n".encode("utf-8", "replace"), "argument"), _OneDevice, "argument", {}).DEVICE


def local_uri(uri: str, where: str) -> str:
    """Return a libvirt URI of this machine. Raise ConfigError for another machine's (https://libvirt.org/uri.html)."""
    match = re.fullmatch(r"[a-z][a-z0-9.-]*(?:\+([a-z0-9]+))?://([^/?#]*).*", uri, re.DOTALL)
    if match and (match[2] or match[1] not in (None, "unix")):
        raise ConfigError(
            f"{where}: {reader.quoted(uri)} is the libvirt of another machine; kmlab's guests run on this one",
            "run kmlab on that machine, or share the runs: kmlab test --shard",
        )
    return uri


def find_lab(start: Path) -> Path | None:
    """Find the lab.yaml in the folder `start` or in the nearest one above it."""
    folder = Path(os.path.abspath(start))
    # os.path.isfile, because an unreadable folder above is not an error here.
    return next((f for d in (folder, *folder.parents) if os.path.isfile(f := d / LAB_FILE)), None)


def open_lab(start: Path, file: Path | None = None) -> Lab:
    """Read the lab of the folder `start`, or the one that `--lab FILE` names. Raise ConfigError if there is none."""
    path = file or find_lab(start)
    if path is None:
        raise no_lab(start)
    return load_lab(path)


def no_lab(start: Path, otherwise: str = "") -> ConfigError:
    """Return the error for a folder without a lab. `otherwise` says what else a person can do."""
    return ConfigError(
        f"no {LAB_FILE} in {printable(os.path.abspath(start))} or in a folder above it",
        "kmlab init writes one" + (f"; or {otherwise}" if otherwise else ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUrl:
    """An image at any URL."""

    url: Url
    sha256: Digest | None = None
    unverified: bool = False
    """Accept whatever the server sends, without a digest."""
    family: Name | None = None
    """The family whose recipe turns the image into a guest; None if the guest has a `recipe`."""
    arch: Arch | None = None
    """The image's architecture; None means the host's."""

    def __post_init__(self) -> None:
        if self.sha256 is None and not self.unverified:
            raise ConfigError(
                "needs a sha256, because nothing else verifies the image",
                "add `sha256: …`, or `unverified: true` to boot whatever the server sends",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePath:
    """An image file on this host."""

    path: Path
    """As written in lab.yaml, relative to the lab's folder."""
    sha256: Digest | None = None
    family: Name | None = None
    arch: Arch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNamed:
    """An image of the catalogue, with a release and a digest that replace the catalogue's."""

    name: ImageName
    serial: Serial | None = None
    """The release; None means the newest."""
    arch: Arch | None = None
    """The architecture; None means the only one of the catalogue, or the host's."""
    digest: AnyDigest | None = None
    """The digest of the image file, as in the publisher's checksum file. It replaces the catalogue's pin."""
    unverified: bool = False
    """Accept whatever the server sends if neither a digest nor a signature verifies the image."""

    def __post_init__(self) -> None:
        if self.serial is not None and self.digest is None:
            raise ConfigError("has a serial but no digest", "add `digest: …`, from the publisher's sums")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalKernel:
    """A kernel that the user built."""

    local: Path
    """A build directory, or a folder of `*.deb` packages; as written, relative to the lab's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSpec:
    """One guest of lab.yaml."""

    name: Name
    image: ImageName | ImageUrl | ImagePath | ImageNamed
    """A name of the catalogue, an image file, or a URL."""
    kernel: KernelName | LocalKernel = "default"
    """default, exact, a version such as 6.12, a package, a flavour or a suite; debug, kcsan, kmsan or coverage, which
    kmlab builds from the distribution's sources, also of a version: 6.12:debug; or {local: DIR}, your own build."""
    config: tuple[ConfigOption, ...] = ()
    """Options that are added to a kernel that kmlab builds, such as CONFIG_USB=y; or from-distribution, alone or first:
    build with all that the distribution's own kernel has."""
    cpus: Annotated[int, whole(1, 64)] = 2
    """Virtual CPUs."""
    memory: Annotated[int, size("256M", "1T")] = 1 << 30
    """The guest's memory, such as 1G."""
    disk: Annotated[int, size("1G", "16T")] | None = None
    """The size that the root disk grows to; None means the image's size."""
    secure_boot: bool = False
    """Boot with Secure Boot; modules are then signed with the lab's key."""
    network: Network = "isolated"
    """What the guest can connect to: nothing (isolated; ssh into it works), nothing and no ssh either (none), or
    whatever the host can (host).
    """
    cmdline: CommandLine = ""
    """Added to the kernel's command line."""
    recipe: Name | None = None
    """None means the recipe of the image's family."""
    packages: tuple[Package, ...] = ()
    """Installed in addition to those of the recipe."""
    forward: tuple[Forward, ...] = ()
    """Ports of the host's loopback that lead to ports of the guest: `8080:80`, or `80` for any free port."""
    sysctls: Mapping[Sysctl, OneLine] = field(default_factory=dict)
    """Set in the guest, such as kernel.panic_on_warn: 1."""

    devices: tuple[GuestDevice, ...] = ()
    """Further devices, each a kind alone, such as edu, or with options, such as {disk: {size: 1G, bus: scsi}}."""
    qemu_args: tuple[OneLine, ...] = ()
    """Unsupported: further options for QEMU. They count only if KMLAB_QEMU_ARGS=1 is set."""

    @property
    def named_devices(self) -> dict[str, Device]:
        """Return its devices by name: nvme, nvme-2."""
        return name_devices(self.devices)

    def __post_init__(self) -> None:
        check_devices(self.devices)
        if self.forward and self.network == "none":
            raise ConfigError("has 'forward' and no network", "remove it, or use `network: isolated`")
        ports = [host for host, _ in self.forward if host]
        if len(set(ports)) < len(ports):
            raise ConfigError("forwards one port of the host twice", "give each its own")


@dataclass(frozen=True, slots=True, kw_only=True)
class _OneDevice:
    DEVICE: GuestDevice


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """The expected result of a run."""

    outcome: tuple[Outcome, ...] = ("pass",)
    """Any one of these outcomes."""
    kind: OneLine | None = None
    """The kind of the first crash."""
    function: Identifier | None = None
    """The guilty function of the first crash."""
    log: tuple[Pattern, ...] = ()
    """Each must match a line of the run's log; see `yaml.types.matches`."""
    not_log: tuple[Pattern, ...] = ()
    """None may match a line."""
    bound: tuple[Pattern, ...] = ()
    """Each must match a device that a driver of the module was bound to: 0000:05:00.0, or `i2c 1-0050`."""
    allow: tuple[Pattern, ...] = ()
    """Known warnings, which are ignored."""
    since: Mapping[Version, Expect] = field(default_factory=dict)
    """Replaces all of this on kernels from that version on."""

    def on(self, version: tuple[int, int] | None) -> Expect:
        """Return the expected result on a kernel of that version."""
        versions = [since for since in self.since if version is not None and since <= version]
        return self.since[max(versions)] if versions else self

    @property
    def wants_bound(self) -> bool:
        """Return whether it expects bound devices on any kernel."""
        return bool(self.bound) or any(other.bound for other in self.since.values())

    def __post_init__(self) -> None:
        if any(other.since for other in self.since.values()):
            raise ConfigError("has a 'since' within a 'since'", "put all versions under one 'since'")
        if not self.outcome:
            raise ConfigError("has an empty list for 'outcome', which no run can meet")
        if self.outcome == ("pass",) and (self.kind or self.function):
            raise ConfigError("names a crash, but its outcome is pass", "add `outcome: oops`, or another outcome")


@dataclass(frozen=True, slots=True, kw_only=True)
class Make:
    """How make is called for a module."""

    variables: Mapping[Identifier, OneLine] = field(default_factory=dict)
    """Set on make's command line, such as LLVM: 1."""
    target: MakeTarget | None = None
    """None means `modules` for kbuild, and the first target of the folder's own Makefile."""
    jobs: Annotated[int, whole(1, 256)] | None = None
    """None means the number of the host's processors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exercise:
    """A command that runs while the module is loaded, with a name of its own."""

    name: OneLine
    run: Command
    timeout: Duration | None = None
    """Time limit in seconds; None means that of the module's steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuzz:
    """A device of the module that `kmlab torture` calls with bad arguments."""

    device: DeviceFile
    """Its file in the guest, such as /dev/ring."""
    ioctls: tuple[HeaderFile, ...] = ()
    """The headers of the module's folder that define its ioctls."""
    rounds: Annotated[int, whole(1, 9999)] = 6
    """How many cases, each with a seed of its own and of at most five seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A folder with a Kbuild file or a Makefile, and how to run it."""

    name: ModuleName
    source: Path
    """As written in lab.yaml, relative to the lab's folder."""
    root: Path | None = None
    """A folder above `source` that is sent whole; None means the source, or a small folder that its build needs."""
    make: Make = field(default_factory=Make)
    """How make is called."""
    prepare: Command | None = None
    """Runs in the module's folder before make, such as ./configure --with-linux=$KDIR."""
    packages: tuple[Package, ...] = ()
    """Installed in the module's guests, for its build."""
    modprobe: tuple[ModprobeLine, ...] = ()
    """The kernel's own modules that are loaded before, with their options, such as i2c-stub chip_addr=0x50."""
    load: Literal["insmod", "modprobe"] = "insmod"
    """The program that loads it: insmod a file, or modprobe a name, from a depmod tree that has the module."""
    params: Mapping[Identifier, Param] = field(default_factory=dict)
    """A list is an array parameter. Numbers that are not plain decimals, such as 0x10 and 010, stay text."""
    exercise: Command | Exercise | tuple[Command | Exercise, ...] | None = None
    """Run in this order as root in the module's folder in the guest, between load and unload."""
    collect: tuple[GuestFiles, ...] = ()
    """Files of the guest, as shell patterns, that a run brings into its folder; relative to the module's folder."""
    collect_max: Annotated[int, size("1K", "20M")] = 16 << 20
    """The largest total size of these files."""
    fuzz: Fuzz | None = None
    """A character device that `kmlab torture` calls with bad arguments."""
    expect: Expect = field(default_factory=Expect)
    """The expected result."""
    timeout: Duration | None = None
    """Time limit for each step of a run, in seconds."""
    guests: tuple[Name, ...] | None = None
    """None means the lab's default."""
    keep: bool = False
    """Leave the module loaded at the end of a run."""

    @property
    def software_devices(self) -> tuple[str, ...]:
        """Return the names of the modules under `modprobe`, as the kernel lists them."""
        return tuple(line.split()[0].replace("-", "_") for line in self.modprobe)

    @property
    def exercises(self) -> tuple[Exercise, ...]:
        """Return all exercises. One without a name is named after its command."""
        given = self.exercise if isinstance(self.exercise, tuple) else (self.exercise,)
        return tuple(each if isinstance(each, Exercise) else plain_exercise(each) for each in given if each)

    def __post_init__(self) -> None:
        names = [each.name for each in self.exercises]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(
                f"has two exercises named {reader.quoted(twice)}", "give each its own name: {name: …, run: …}"
            )


def plain_exercise(command: str) -> Exercise:
    """Return the exercise of a command alone, named after it."""
    return Exercise(name=" ".join(command.split()), run=command)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """One lab.yaml."""

    path: Path
    """The absolute path of lab.yaml; not a key, like `file` and `lines`."""
    file: str = LAB_FILE
    """The name of the file in errors."""
    lines: Lines = field(default_factory=dict, repr=False, compare=False)

    name: Name
    """The lab's name."""
    guests: Mapping[Name, GuestSpec]
    """The guests, by name."""
    default: tuple[str, ...] = ()
    """The guests of a command that names none. If it is missing, load_lab fills in the first guest."""
    modules: Mapping[ModuleName, Module] = field(default_factory=dict)
    """The modules, by name. A folder with a Makefile or a Kbuild file also runs without an entry."""
    libvirt: LibvirtUri = "embedded"
    """embedded, or a libvirt URI such as qemu:///session."""
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    """How guests run: auto means KVM if it works, otherwise emulation."""
    build: Literal["auto", "guest", "sandbox"] = "auto"
    """Where modules are built."""
    matrix: tuple[Column, ...] = ()
    """The guests of `kmlab test`: each a guest, a guest with another kernel as GUEST@KERNEL, or a kernel alone."""
    mirror: Url | None = None
    """A server to use instead of the publishers'. `{host}` in it is replaced by the publisher's host."""
    vmcore: Literal["auto", "always", "never"] = "auto"
    vmcore_max: Size = 2 << 30
    """The largest dump that is kept."""
    keep_runs: Annotated[int, whole(1, 1_000_000)] = 50
    """The number of runs whose folders are kept."""
    keep_runs_size: Size = 2 << 30
    """The largest total size of these folders."""
    allow: tuple[Pattern, ...] = ()
    """Known warnings of all modules, which are ignored."""

    @property
    def folder(self) -> Path:
        """Return the folder that every relative path in the file starts from."""
        return self.path.parent

    def guest(self, name: str) -> GuestSpec:
        """Return the guest of that name. `debian@6.12` is the guest debian with another kernel."""
        plain, at, kernel = name.partition("@")
        if at and kernel:
            return _with_kernel(self.guest(plain), kernel)
        if name not in self.guests:
            hint = reader.nearest(name, self.guests, "guests")
            raise ConfigError(f"there is no guest {reader.quoted(name)} in {self.file}", hint)
        return self.guests[name]

    def columns(self, guests: Iterable[str], matrix: Iterable[str]) -> list[GuestSpec]:
        """Return the guests of a matrix, each once, in order. A kernel alone stands for each of `guests` with it."""
        names: list[str] = []
        for column in matrix:
            whole = "@" in column or column in self.guests
            names += [column] if whole else [f"{guest}@{column}" for guest in guests]
        return list({spec.name: spec for spec in map(self.guest, names)}.values())

    def module_for(self, directory: Path) -> Module:
        """Return the entry whose source is that folder, or a plain module named after the folder.

        If several entries have this folder, return the one with the folder's name, or else the first. If the folder
        does not exist, `directory` may be an entry's name.
        """
        if str(directory) in self.modules and not os.path.exists(directory):
            return self.modules[str(directory)]
        folder = os.path.realpath(directory)
        folder_name = os.path.basename(folder)
        entries = [m for m in self.modules.values() if os.path.realpath(self.locate(m.source)) == folder]
        for module in entries:
            if module.name == folder_name:
                return module
        name = re.sub("[^A-Za-z0-9_.+-]", "-", folder_name).lstrip(".+-")[:64] or "module"
        return entries[0] if entries else Module(name=name, source=Path(os.path.abspath(directory)))

    def locate(self, path: Path) -> Path:
        """Return the host's path of a path in lab.yaml. `~` is the user's home."""
        return self.folder / os.path.expanduser(path)

    def where(self, *keys: str) -> str:
        """Return `"lab.yaml:6"`, the place of those keys: `lab.where("guests", "debian", "image")`.

        Without a lab.yaml, it is the option of the command that sets the key.
        """
        if self.file == DEFAULTS and keys:
            return f"--{keys[-1].replace('_', '-')}"
        return reader.where(self.file, self.lines, *keys)

    def error(self, keys: Iterable[str], message: str, hint: str | None = None) -> ConfigError:
        """Return the error for a mistake that is found later, such as an image that the catalogue does not have."""
        return ConfigError(f"{self.where(*keys)}: {message}", hint)


def _with_kernel(spec: GuestSpec, kernel: str) -> GuestSpec:
    """Return a copy of a guest with another kernel, named after both."""
    try:
        kernel_name = parse_kernel(kernel)
    except ConfigError as error:
        raise ConfigError(f"{reader.quoted(f'{spec.name}@{kernel}')} {error.message}", error.hint) from None
    if kernel_name == spec.kernel:
        return spec
    name = f"{spec.name}@{re.sub('[^A-Za-z0-9.+-]', '_', kernel_name)}"
    if len(name) > _LONGEST_NAME or not name.endswith(f"@{kernel_name}"):
        # A digest keeps shortened names distinct.
        digest = hashlib.sha256(kernel_name.encode("utf-8", "surrogatepass")).hexdigest()[:4]
        name = f"{name[: _LONGEST_NAME - 5]}_{digest}"
    return replace(spec, name=name, kernel=kernel_name)


def _with_module_packages(lab: Lab, spec: GuestSpec) -> GuestSpec:
    """Return a guest with the packages of the modules that run in it."""
    modules = [module for module in lab.modules.values() if module.guests is None or spec.name in module.guests]
    packages = (*spec.packages, *(package for module in modules for package in module.packages))
    return replace(spec, packages=tuple(dict.fromkeys(packages)))


def _check_cables(lab: Lab) -> None:
    """Raise ConfigError if a cable has more than two ends."""
    ends: dict[str, int] = {}
    for spec in lab.guests.values():
        for card in (device for device in spec.devices if isinstance(device, Nic) and device.network):
            ends[str(card.network)] = ends.get(str(card.network), 0) + 1
            if ends[str(card.network)] > 2:
                message = f"guest '{spec.name}': the network '{card.network}' has more than two network cards"
                raise lab.error(("guests", spec.name, "devices"), message, "a network is one cable with two ends")


def _check_matrix(lab: Lab) -> None:
    for index, column in enumerate(lab.matrix):
        at, (guest, another, _) = ("matrix", str(index)), column.partition("@")
        if another and guest not in lab.guests:
            hint = reader.nearest(guest, lab.guests, "guests")
            raise lab.error(at, f"'matrix' refers to an unknown guest {reader.quoted(guest)}", hint)
        if column in lab.matrix[:index]:
            raise lab.error(at, f"'matrix' names '{column}' twice", "remove one")


def _check_guest_names(lab: Lab) -> None:
    references: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [(("default",), lab.default, "'default'")]
    for name, module in lab.modules.items():
        if module.guests is not None:
            references.append((("modules", name, "guests"), module.guests, f"'guests' of module '{name}'"))
    for keys, names, what in references:
        for index, guest in enumerate(names):
            at = (*keys, str(index))
            if guest not in lab.guests:
                hint = reader.nearest(guest, lab.guests, "guests")
                raise lab.error(at, f"{what} refers to an unknown guest {reader.quoted(guest)}", hint)
            if guest in names[:index]:
                raise lab.error(at, f"{what} names '{guest}' twice", "remove one")
