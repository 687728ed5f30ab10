"""Read the flavours of kernels that kmlab builds: guests/kernel/flavours/NAME.config, one file each.

A lab can have its own flavours in `guests/kernel/flavours/` next to lab.yaml; they take precedence over kmlab's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kmlab.common.errors import ConfigError
from kmlab.config.catalog import catalogue_folders
from kmlab.config.lab import GuestSpec, Lab

_FLAVOURS = "kernel/flavours"
_APPENDED = "kernel/append"
_PROGRAMS = "/usr/lib/kmlab"


@dataclass(frozen=True, slots=True)
class KernelFlavour:
    """A kernel that kmlab builds, and what it finds."""

    name: str
    about: str
    """The first line of the file: what it finds."""
    fragment: str
    """Its options, in the syntax of a .config."""
    cmdline: str = ""
    """Added to the kernel's command line: the line `# cmdline: …` of the file."""


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """A value of `kernel:` that names a flavour: `debug`, `6.12:debug`, `backports:kcsan`."""

    flavour: KernelFlavour
    words: tuple[str, ...]
    """The other words: a version, a suite."""


def flavour_names(lab_folder: Path | None = None) -> list[str]:
    """Return the names of all flavours, sorted."""
    return sorted({p.stem for f in catalogue_folders("guests", lab_folder) for p in (f / _FLAVOURS).glob("*.config")})


def load_flavour(name: str, lab_folder: Path | None = None) -> KernelFlavour:
    """Read the flavour of that name. Raise ConfigError if there is none."""
    text = _read(f"{_FLAVOURS}/{name}.config", lab_folder)
    if text is None:
        raise ConfigError(f"unknown flavour '{name}'", f"flavours: {', '.join(flavour_names(lab_folder))}")
    cmdline = re.search(r"^# cmdline: (.*)$", text, re.MULTILINE)
    about = text.partition("\n")[0].lstrip("# ").rstrip()
    return KernelFlavour(name, about, text, cmdline[1].strip() if cmdline else "")


def parse_request(kernel: object, lab_folder: Path | None = None) -> KernelRequest | None:
    """Return the request for a kernel that kmlab builds; None for every other value of `kernel:`."""
    if not isinstance(kernel, str):
        return None
    words = [word for word in kernel.split(":") if word]
    named = [word for word in words if word in flavour_names(lab_folder)]
    if len(named) != 1:
        return None
    return KernelRequest(load_flavour(named[0], lab_folder), tuple(word for word in words if word != named[0]))


def with_debug_kernel(lab: Lab, spec: GuestSpec) -> GuestSpec:
    """Return the same guest with the debug kernel of its series; one whose kernel kmlab builds stays as it is."""
    if parse_request(spec.kernel, lab.folder):
        return spec
    kernel = spec.kernel if isinstance(spec.kernel, str) else ""
    series = f"{kernel}:" if re.fullmatch(r"\d+\.\d+|backports", kernel) else ""
    return lab.guest(f"{spec.name.partition('@')[0]}@{series}debug")


def common_fragment(arch: str, lab_folder: Path | None = None) -> str:
    """Return the options that every guest of that architecture needs. Raise ConfigError if they are unknown."""
    text = _read(f"kernel/{arch}.config", lab_folder)
    if text is None:
        raise ConfigError(f"kmlab builds no kernels for {arch}", f"add guests/kernel/{arch}.config next to lab.yaml")
    return text


def modules_fragment(lab_folder: Path | None = None) -> str:
    """Return the options that only modules get."""
    return _read("kernel/modules.config", lab_folder) or ""


def programs(lab_folder: Path | None = None) -> dict[str, str]:
    """Return the programs of guests with such a kernel: their texts by their paths in the guest."""
    names = ("init", "keep")
    return {f"{_PROGRAMS}/{name}": _read(f"kernel/files/{name}", lab_folder) or "" for name in names}


def appended_sources(lab_folder: Path | None = None) -> dict[str, str]:
    """Return what is added to the end of the kernel's own files, by their paths in its tree."""
    added: dict[str, str] = {}
    for folder in reversed(catalogue_folders("guests", lab_folder)):
        top = folder / _APPENDED
        added |= {str(path.relative_to(top)): path.read_text(encoding="utf-8") for path in sorted(top.rglob("*.c"))}
    return added


def boot_options(request: KernelRequest) -> str:
    """Return what such a kernel needs on its command line."""
    return f"init={_PROGRAMS}/init {request.flavour.cmdline}".strip()


def _read(name: str, lab_folder: Path | None) -> str | None:
    for folder in catalogue_folders("guests", lab_folder):
        path = folder / name
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}: cannot read this part of a kernel's configuration: {error}") from None
    return None
