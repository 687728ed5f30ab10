"""Make the lab of a folder without lab.yaml: one guest with default settings, and with what the command line says.

The settings of the last run are kept with the lab's state, so that later commands (`ssh`, `log`, `unload`, …) find the
same guest.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.config import catalog
from kmlab.config.lab import DEFAULTS, LAB_FILE, GuestSpec, Lab
from kmlab.config.yaml.reader import quoted
from kmlab.config.yaml.types import parse_kernel, size

T = TypeVar("T")
DEFAULT_IMAGE = "debian-12"
_MAKE_FILES = ("Kbuild", "GNUmakefile", "makefile", "Makefile", "dkms.conf")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSettings:
    """What the command line says about the guest. None means the default."""

    image: str | None = None
    kernel: str | None = None
    memory: int | None = None
    """Bytes."""
    cpus: int | None = None
    secure_boot: bool = False

    @property
    def options(self) -> list[str]:
        """Return the options that were given, as a person types them."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return [f"--{name.replace('_', '-')}" for name, value in given.items() if value]


def parse_settings(
    image: str | None, kernel: str | None, memory: str | None, cpus: int | None, secure_boot: bool
) -> GuestSettings:
    """Check the options of a command by the rules of lab.yaml. Raise ConfigError that names the option."""
    return GuestSettings(
        image=image,
        kernel=_option("--kernel", parse_kernel, kernel),
        memory=_option("--memory", size("256M", "1T").parse, memory),  # type: ignore[arg-type]
        cpus=cpus,
        secure_boot=secure_boot,
    )


def default_lab(folder: Path, settings: GuestSettings) -> Lab:
    """Return the lab of defaults of this folder. Raise ConfigError if the catalogue does not have the image."""
    place = Path(os.path.abspath(folder))
    image = catalog.load_image(settings.image or DEFAULT_IMAGE, place, "--image").name
    given: dict[str, Any] = {
        name: value for name in ("kernel", "memory", "cpus") if (value := getattr(settings, name)) is not None
    }
    guest = GuestSpec(name=plain_name(image, "guest"), image=image, secure_boot=settings.secure_boot, **given)
    return Lab(
        path=place / LAB_FILE,
        file=DEFAULTS,
        name=plain_name(place.name, "lab"),
        guests={guest.name: guest},
        default=(guest.name,),
    )


def remember(lab: Lab, settings: GuestSettings) -> None:
    """Keep the settings of a lab of defaults with its state."""
    paths.write_json(_record(lab.path), dataclasses.asdict(settings))


def find_default_lab(start: Path) -> Lab | None:
    """Return the lab of defaults that an earlier command used in this folder, or in the nearest one above it."""
    place = Path(os.path.abspath(start))
    for folder in (place, *place.parents):
        value = paths.read_json(_record(folder / LAB_FILE))
        if isinstance(value, dict):
            try:
                return default_lab(folder, GuestSettings(**value))
            except (TypeError, ConfigError):  # another version of kmlab wrote it
                return default_lab(folder, GuestSettings())
    return None


def holds_module(folder: Path) -> bool:
    """Return whether a folder looks like a module's: it has a file that says how to build one."""
    return any(os.path.isfile(folder / name) for name in _MAKE_FILES)


def plain_name(text: str, otherwise: str) -> str:
    """Return a name for a lab or a guest that is made of any text, such as a folder's name."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:31].rstrip("-") or otherwise


def _record(lab_yaml: Path) -> Path:
    return paths.LabFiles.of(plain_name(lab_yaml.parent.name, "lab"), lab_yaml).root / "defaults.json"


def _option(option: str, parse: Callable[[str], T], text: str | None) -> T | None:
    if text is None:
        return None
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{option} {quoted(text)} {error.message}", error.hint) from None
