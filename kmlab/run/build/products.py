"""Hold the result of a build: its log, its errors, and the modules and programs that it left."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kmlab.kernel.build.diagnostics import Diagnostic
from kmlab.kernel.module.modinfo import LoadOrder, ModInfo, load_order, parse_modinfo
from kmlab.kernel.symbols.elf import LARGEST_PRODUCTS

_MOST_PRODUCTS = 2048
"""The most files that a build hands back."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The result of a build: log, errors and .ko files."""

    ok: bool
    log: str
    how: str
    diagnostics: tuple[Diagnostic, ...] = ()
    reason: str | None = None
    images: Mapping[str, bytes] = field(default_factory=dict)
    """The .ko files by their path in the module's folder."""
    modules: tuple[tuple[str, ModInfo], ...] = ()
    """Path and .modinfo of each, in the order to load them."""
    outside: tuple[str, ...] = ()
    """The kernel's own modules that must be loaded first."""
    skipped: bool = False
    """Whether the folder itself says that it is not for this kernel; `reason` says why."""
    built_in: str = ""
    """Where the sources were built, from the root of what is sent; empty for the module's own folder."""
    undelivered: Mapping[str, bytes] = field(default_factory=dict)
    """Files that the module's folder in the guest does not have yet, by path."""

    @property
    def paths(self) -> str:
        """Return the modules' paths, for people."""
        shown = (path.removeprefix(f"{self.built_in}/") for path, _ in self.modules)
        return ", ".join(shown) or "no module"

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the modules."""
        return frozenset(info.name for _, info in self.modules)


class Products:
    """The files that a build hands back, up to a limit."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.excess: str | None = None
        """Why the build exceeds the limit: a sentence."""

    def take(self, offered: Mapping[str, int], read: Callable[[str, int], bytes | None]) -> None:
        """Add files: all of them, or none if they exceed the limit. `offered` are the sizes that they claim to have.

        `read` returns up to that many bytes of a file, or None if it is no file any more.
        """
        new = {path: size for path, size in offered.items() if path not in self.files}
        left = LARGEST_PRODUCTS - sum(map(len, self.files.values()))
        if sum(new.values()) > left:
            limit = f"{LARGEST_PRODUCTS >> 20} MiB"
            self.excess = f"the build left more than {limit} of modules and programs: does its Makefile fill files?"
        elif len(self.files) + len(new) > _MOST_PRODUCTS:
            self.excess = (
                f"the build left more than {_MOST_PRODUCTS} modules and programs: does its Makefile copy them?"
            )
        else:
            contents = {path: read(path, size) for path, size in new.items()}
            self.files.update({path: content for path, content in contents.items() if content is not None})


def ordered_modules(images: Mapping[str, bytes]) -> tuple[tuple[tuple[str, ModInfo], ...], tuple[str, ...]]:
    """Return path and .modinfo of each module in the order to load them, and the kernel's own that come first.

    Raise ConfigError if one cannot be read, or if no order can load them.
    """
    infos = {path: parse_modinfo(image, path) for path, image in images.items()}
    order = load_order(infos.values())
    return _with_paths(infos, order), order.outside


def _with_paths(infos: Mapping[str, ModInfo], order: LoadOrder) -> tuple[tuple[str, ModInfo], ...]:
    places = {info.name: path for path, info in infos.items()}
    return tuple((places[info.name], info) for info in order.modules)


def modules_of_build(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the .ko files that this build made: those that a modules.order names, in its order, or all without one."""
    modules = {path: content for path, content in files.items() if path.endswith(".ko")}
    orders = [content.decode("utf-8", "replace") for path, content in files.items() if path not in modules]
    endings = tuple(re.sub(r"\.o$", ".ko", word) for order in orders for word in order.split())
    places = {path: place for path in modules if (place := _place_in(endings, path)) is not None}
    if orders and places:
        return {path: modules[path] for path in sorted(places, key=lambda path: places[path])}
    return {} if orders and not endings else modules


def _place_in(order: tuple[str, ...], path: str) -> int | None:
    return next((number for number, word in enumerate(order) if word == path or word.endswith(f"/{path}")), None)
