"""Read what a kernel module says of itself, and write its parameters.

Follows modinfo(8), modprobe.d(5) and kernel/params.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kmlab.common.errors import ConfigError
from kmlab.kernel.symbols.elf import MACHINES, SIGNATURE_MAGIC, MalformedModule, find_compression, read_object

Scalar = str | int | bool
ParamValue = Scalar | Sequence[Scalar]


class Param(NamedTuple):
    """One module parameter."""

    name: str
    type: str
    """As the kernel's macros name it: int, bool, charp, "array of int"; empty where it is not said."""
    description: str


class Softdep(NamedTuple):
    """Modules that modprobe loads before or after, if they are there."""

    pre: tuple[str, ...]
    post: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModInfo:
    """What modinfo(8) would print of one .ko, and a little more."""

    name: str
    """The kernel's name of it: with underscores, whatever the file is called."""
    machine: str
    """x86_64 or aarch64."""
    license: str | None
    vermagic: str | None
    """The kernel release it was built for and the options that change its ABI, separated by blanks."""
    description: str | None
    version: str | None
    srcversion: str | None
    depends: tuple[str, ...]
    params: tuple[Param, ...]
    aliases: tuple[str, ...]
    softdeps: tuple[Softdep, ...]
    firmware: tuple[str, ...]
    import_namespaces: tuple[str, ...]
    retpoline: bool
    intree: bool
    signed: bool
    has_exit: bool
    """Whether it has an exit function; the kernel will not unload one without."""
    has_symbols: bool
    """Whether it has a symbol table; no kernel loads one that was stripped of it."""
    has_versions: bool
    """Whether it records a checksum of each kernel symbol it uses (CONFIG_MODVERSIONS)."""
    has_debug: bool
    """Whether it still carries DWARF, which is what file and line are found with."""

    @property
    def release(self) -> str | None:
        """The kernel release that it was built for: the first word of vermagic."""
        words = (self.vermagic or "").split()
        return words[0] if words else None

    @property
    def gpl_compatible(self) -> bool:
        """Whether it may use GPL-only symbols: license_is_gpl_compatible() in include/linux/license.h."""
        return self.license in _GPL_COMPATIBLE


class LoadOrder(NamedTuple):
    """In which order to insmod some modules."""

    modules: tuple[ModInfo, ...]
    """Those given, each after all that it depends on; unload in reverse."""
    outside: tuple[str, ...]
    """Modules that they depend on and that were not given: modprobe these first."""


_LARGEST = 4 << 20
"""Bytes of a .modinfo; a driver with thousands of aliases has some 100 kB."""
_GPL_COMPATIBLE = frozenset(
    ("GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL")
)


def parse_modinfo(image: bytes, name: str = "module.ko") -> ModInfo:
    """Return what the module in `image` says of itself; MalformedModule, naming the file `name`, if it is none."""
    elf = read_object(image, name)
    section = elf.find(".modinfo")
    if section is None or elf.find(".gnu.linkonce.this_module") is None:
        raise MalformedModule(
            f"{name}: is an object file but not a kernel module: it has no .modinfo",
            "give the .ko that make built, not a .o",
        )
    content = elf.content(section)
    if len(content) > _LARGEST:
        raise MalformedModule(f"{name}: says more than {_LARGEST >> 20} MiB of itself in .modinfo", "build it again")
    tags: dict[str, list[str]] = {}
    for entry in content.decode("utf-8", "replace").split("\0"):
        key, equals, value = entry.partition("=")
        if equals:
            tags.setdefault(key, []).append(value)
    return ModInfo(
        name=_last(tags, "name") or _name_of_file(name),
        machine=MACHINES[elf.machine],
        license=_last(tags, "license"),
        vermagic=_last(tags, "vermagic"),
        description=_last(tags, "description"),
        version=_last(tags, "version"),
        srcversion=_last(tags, "srcversion"),
        depends=_depends(tags.get("depends", ())),
        params=_params(tags.get("parmtype", ()), tags.get("parm", ())),
        aliases=tuple(tags.get("alias", ())),
        softdeps=tuple(map(_softdep, tags.get("softdep", ()))),
        firmware=tuple(tags.get("firmware", ())),
        import_namespaces=tuple(tags.get("import_ns", ())),
        retpoline=_last(tags, "retpoline") == "Y",
        intree=_last(tags, "intree") == "Y",
        signed=is_signed(image),
        has_exit=any(symbol.name == "cleanup_module" and symbol.section for symbol in elf.symbols),
        has_symbols=elf.find(".symtab") is not None,
        has_versions=any(elf.find(name) for name in ("__versions", "__version_ext_crcs")),
        has_debug=elf.find(".debug_info") is not None,
    )


def is_signed(image: bytes) -> bool:
    """Whether a signature of some kind is appended; whose, and whether it is right, is another matter."""
    return image.endswith(SIGNATURE_MAGIC)


def is_compressed(image: bytes) -> bool:
    """Whether these are the bytes of a .ko.xz, .ko.zst or .ko.gz."""
    return find_compression(image) is not None


def load_order(modules: Iterable[ModInfo]) -> LoadOrder:
    """Return the order to load `modules` in: by `depends`, else as given.

    Raises ConfigError for two of one name and for those that depend on one another.
    """
    named: dict[str, ModInfo] = {}
    for module in modules:
        if module.name in named:
            raise ConfigError(f"two modules are called '{module.name}'", "the kernel takes one of a name: rename one")
        named[module.name] = module
    outside: dict[str, None] = {}
    done: dict[str, ModInfo] = {}
    for first in named:
        trail: list[str] = []
        todo = [(first, False)]
        while todo:
            name, left = todo.pop()
            if left:
                done[name] = named[trail.pop()]
            elif name in trail:
                circle = " -> ".join([*trail[trail.index(name) :], name])
                raise ConfigError(f"these modules depend on one another: {circle}", "no order can load them")
            elif name not in named:
                outside[name] = None
            elif name not in done:
                trail.append(name)
                todo.append((name, True))
                todo.extend((needed, False) for needed in reversed(named[name].depends))
    return LoadOrder(tuple(done.values()), tuple(outside))


def format_params(params: Mapping[str, ParamValue]) -> list[str]:
    """Return parameters as the arguments of insmod(8), one NAME=VALUE each.

    Raise ConfigError for a value that the kernel cannot be given.

    The double quotes around a value with blanks are for the kernel (next_arg() in lib/cmdline.c), not for a
    shell, so each result is one argument as it stands.
    """
    return [f"{_checked_name(name)}={_format_value(name, value)}" for name, value in params.items()]


def parse_param(text: str) -> tuple[str, str]:
    """Name and value of a NAME=VALUE for `-p`; double quotes around the whole value are dropped."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"-p {text}: is not NAME=VALUE", f"for a switch write -p {text}=1")
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    _format_value(_checked_name(name), value)
    return name, value


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII):
        raise ConfigError(f"parameter '{name}': is no name of a parameter", "letters, digits and underscores only")
    return name


def _format_value(name: str, value: ParamValue) -> str:
    if isinstance(value, bool):
        return "Y" if value else "N"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        bad = next((what for sign, what in _UNSPEAKABLE.items() if sign in value), None)
        if bad:
            raise ConfigError(f"parameter '{name}': has {bad} in its value", "the kernel has no way to write that")
        # The kernel's isspace() takes more than the blank for the end of a value, U+00A0 as latin-1 included.
        return f'"{value}"' if not value.isascii() or any(c.isspace() for c in value) else value
    parts = [_format_value(name, part) for part in value]
    if any(isinstance(part, str) and "," in part for part in value):
        raise ConfigError(f"parameter '{name}': has a comma inside an element", "the kernel splits arrays at commas")
    joined = ",".join(part.strip('"') for part in parts)
    return f'"{joined}"' if any('"' in part for part in parts) else joined


_UNSPEAKABLE = {'"': "a double quote", "\n": "a newline", "\r": "a carriage return", "\0": "a NUL byte"}


def _last(tags: Mapping[str, Sequence[str]], key: str) -> str | None:
    values = tags.get(key)
    return values[-1] if values else None


def _name_of_file(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".ko").replace("-", "_")


def _depends(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.replace("-", "_") for value in values for name in value.split(",") if name)


def _params(types: Iterable[str], descriptions: Iterable[str]) -> tuple[Param, ...]:
    """Both lists by name; a parameter may have either alone."""
    typed = dict(_pair(entry) for entry in types)
    said = dict(_pair(entry) for entry in descriptions)
    return tuple(Param(name, typed.get(name, ""), said.get(name, "")) for name in {**typed, **said})


def _pair(entry: str) -> tuple[str, str]:
    name, _, rest = entry.partition(":")
    return name, rest


def _softdep(text: str) -> Softdep:
    found: dict[str, list[str]] = {"pre": [], "post": []}
    into: list[str] = []
    for word in text.split():
        if word.rstrip(":") in found and word.endswith(":"):
            into = found[word.rstrip(":")]
        else:
            into.append(word)
    return Softdep(tuple(found["pre"]), tuple(found["post"]))
