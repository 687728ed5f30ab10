"""What can be booted and how it becomes a guest: reads images/*.yaml and guests/*/, and nothing else.

A lab may bring its own `images/` and `guests/` beside lab.yaml; they win over those that come with kmlab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kmlab import yamlfile
from kmlab.errors import ConfigError

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSource:
    """An image that is built here from a distribution's signed packages."""

    distribution: str
    suite: str
    kernel: str
    """The image package of the default kernel: linux-image-…"""
    include: tuple[str, ...] = ()
    """Packages that only this image needs: the signed boot chain."""
    root_size: int = 4 << 30
    """Bytes of the root file system; it is sparse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How the image comes about on one architecture."""

    packages: PackageSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One entry of the catalogue: images/NAME.yaml."""

    name: str
    family: str
    """Which guests/FAMILY/ turns it into a guest."""
    release: str
    architectures: dict[str, Architecture]
    """By `uname -m`."""
    kernel_suites: tuple[str, ...] = ()
    """Suites, beside those that the image's own apt asks, that kernels may be taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """guests/FAMILY/: how an image of that family becomes a guest that builds modules."""

    family: str
    system: tuple[str, ...]
    """Packages without which it does not boot or cannot be reached."""
    packages: tuple[str, ...]
    """Packages to build, load and watch modules."""
    headers: str
    """The headers package of the kernel `{release}`."""
    cmdline: str
    user_data: str = ""
    """cloud-init's configuration, as YAML."""
    bake: str = ""
    """The script that runs once in the guest that becomes a base."""
    idle: str = ""
    """The script that runs in a booted base before its memory is saved."""


def root_script() -> str:
    """The script that turns an unpacked system into a file system (images/root.sh)."""
    return (_folders("images", None)[-1] / "root.sh").read_text(encoding="utf-8")


def image_names(beside: Path | None = None) -> list[str]:
    """Every image of the catalogue."""
    return sorted({path.stem for folder in _folders("images", beside) for path in folder.glob("*.yaml")})


def load_image(name: str, beside: Path | None = None, where: str = "") -> Image:
    """The entry `name`; ConfigError with the nearest name if there is none. `where` is who asked: file:line."""
    for folder in _folders("images", beside):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return yamlfile.load(path, Image, name=name)
    prefix = f"{where}: " if where else ""
    known = image_names(beside)
    raise ConfigError(f"{prefix}unknown image '{name}'", yamlfile.nearest(name, known, "images"))


def load_recipe(family: str, beside: Path | None = None) -> Recipe:
    """The recipe of a family of distributions."""
    for folder in _folders("guests", beside):
        home = folder / family
        if (home / "recipe.yaml").is_file():
            texts = {"user_data": "user-data.yaml", "bake": "bake.sh", "idle": "idle.sh"}
            given = {field: _text(home / name) for field, name in texts.items()}
            return yamlfile.load(home / "recipe.yaml", Recipe, **given)
    raise ConfigError(f"no recipe for the family '{family}'", f"write guests/{family}/recipe.yaml beside lab.yaml")


def architecture(image: Image, wanted: str) -> Architecture:
    """How `image` comes about on an architecture."""
    found = image.architectures.get(wanted)
    if found is None:
        raise ConfigError(
            f"image '{image.name}' is not there for {wanted}", f"it is for: {', '.join(image.architectures)}"
        )
    return found


def built_packages(source: PackageSource, recipe: Recipe, extra: Sequence[str] = ()) -> list[str]:
    """All packages to put into an image at build time, so that baking has little left to do."""
    headers = source.kernel.replace("linux-image-", "linux-headers-", 1)
    return sorted({*recipe.system, *recipe.packages, *source.include, *extra, source.kernel, headers})


def _folders(kind: str, beside: Path | None) -> list[Path]:
    """The lab's own folder, then kmlab's: in a wheel inside the package, in a checkout beside it."""
    candidates = [beside / kind] if beside else []
    candidates += [_PACKAGE / kind, _PACKAGE.parent / kind]
    return [folder for folder in candidates if folder.is_dir()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read this part of the recipe: {error}") from None
