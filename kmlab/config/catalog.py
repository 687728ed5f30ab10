"""What can be booted and how it becomes a guest: reads images/*.yaml and guests/*/, and nothing else.

A lab may bring its own `images/` and `guests/` beside lab.yaml; they win over those that come with kmlab.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmlab.common.errors import ConfigError
from kmlab.config.yaml import reader
from kmlab.config.yaml.types import AnyDigest, FileName, Fingerprint, FolderName, HttpsUrl, Name, OneLine, Serial, Time

_PACKAGE = Path(__file__).parents[1]


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
class Pin:
    """Which release of a published image is meant, and what it must be."""

    serial: Serial | None = None
    """None is whichever is the newest."""
    digest: AnyDigest
    """Of the image, by the publisher's own kind of sums."""
    signed: Time | None = None
    """When the publisher signed its sums: nothing older is taken instead of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """An image that its publisher made."""

    file: FileName
    """In the publisher's folder of the newest release."""
    dated_file: FileName | None = None
    """In the folder of one release, where it has another name there."""
    pin: Pin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Where images lie, and who says which bytes are right."""

    server: HttpsUrl
    newest: FolderName
    """The folder of the newest release."""
    dated: FolderName
    """The folder of the release `{serial}`."""
    sums: FileName
    """In each of these folders: SHA256SUMS or SHA512SUMS."""
    signature: FileName | None = None
    """Of the sums, detached; None where the publisher signs nothing."""
    key: FileName | None = None
    """images/keys/KEY.gpg, described in KEY.yaml: the only key whose signature counts."""

    def __post_init__(self) -> None:
        if (self.signature is None) != (self.key is None):
            raise ConfigError("needs both 'signature' and 'key', or neither", "a publisher that signs nothing has none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A publisher's public key: images/keys/NAME.yaml, and NAME.gpg beside it."""

    name: str
    keyring: Path
    fingerprint: Fingerprint
    origin: OneLine
    """Where it was taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How the image comes about on one architecture: built here, or downloaded."""

    packages: PackageSource | None = None
    download: Download | None = None

    def __post_init__(self) -> None:
        if (self.packages is None) == (self.download is None):
            raise ConfigError("needs one of 'packages' and 'download'")


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
    expired_indexes: bool = False
    """Whether an archive's indexes count past their Valid-Until, as those of a mirror that is renewed rarely. They are
    verified all the same, but may be older than they should be."""
    publisher: Publisher | None = None
    """Of an image that is downloaded."""

    def __post_init__(self) -> None:
        if self.publisher is None and any(a.download for a in self.architectures.values()):
            raise ConfigError("has a 'download' and no 'publisher'", "say where it lies: publisher: {server: …}")


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
    optional: tuple[str, ...] = ()
    """Packages to install where the archive has them; `{release}` is the kernel's."""
    user_data: str = ""
    """cloud-init's configuration, as YAML."""
    configure: str = ""
    """The script that makes a system a lab's guest, unpacked or booted."""
    bake: str = ""
    """The script that runs once in the guest that becomes a base, with `configure` in it: see `configured`."""
    first_boot: bool = False
    """Whether it does in a first boot what `configure` does not do."""
    idle: str = ""
    """The script that runs in a booted base before its memory is saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenRecipe:
    """A recipe.yaml. What it leaves out is that of the recipe that it is like."""

    family: str
    like: Name | None = None
    system: tuple[str, ...] | None = None
    packages: tuple[str, ...] | None = None
    headers: str | None = None
    cmdline: str | None = None
    optional: tuple[str, ...] | None = None


_COPIED = ("system", "packages", "headers", "cmdline", "optional")
_TEXTS = {"configure": "configure.sh", "user_data": "user-data.yaml", "bake": "bake.sh", "idle": "idle.sh"}
_FIRST_BOOT = ("user-data.yaml", "bake.sh", "before.sh")
"""What only a first boot runs. With a configure.sh beside it, that does the same where nothing more is asked for."""
_CONFIGURE = "\n@CONFIGURE@\n"
"""Where in bake.sh and root.sh the text of configure.sh goes."""


def root_script(recipe: Recipe, authorized_key: str) -> str:
    """The script that turns an unpacked system into a file system (images/root.sh), and makes it a lab's guest."""
    script = (_folders("images", None)[-1] / "root.sh").read_text(encoding="utf-8")
    script = configured(script, recipe).replace("@CMDLINE@", recipe.cmdline.strip())
    return script.replace("@AUTHORIZED_KEY@", authorized_key)


def configured(script: str, recipe: Recipe) -> str:
    """A script with the text of configure.sh where it wants it."""
    return script.replace(_CONFIGURE, f"\n{recipe.configure.rstrip()}\n")


def agent_source() -> str:
    """The C program that is a guest's end of the channel (guests/agent.c)."""
    return (_folders("guests", None)[-1] / "agent.c").read_text(encoding="utf-8")


def image_names(beside: Path | None = None) -> list[str]:
    """Every image of the catalogue."""
    return sorted({path.stem for folder in _folders("images", beside) for path in folder.glob("*.yaml")})


def load_image(name: str, beside: Path | None = None, where: str = "") -> Image:
    """The entry `name`; ConfigError with the nearest name if there is none. `where` is who asked: file:line."""
    for folder in _folders("images", beside):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return reader.load(path, Image, name=name)
    prefix = f"{where}: " if where else ""
    known = image_names(beside)
    raise ConfigError(f"{prefix}unknown image '{name}'", reader.nearest(name, known, "images"))


def load_recipe(family: str, beside: Path | None = None) -> Recipe:
    """The recipe of a family of distributions, with what it takes from the one that it is `like`."""
    for folder in _folders("guests", beside):
        home = folder / family
        path = home / "recipe.yaml"
        if path.is_file():
            written = reader.load(path, WrittenRecipe)
            given: dict[str, Any] = {name: value for name in _COPIED if (value := getattr(written, name)) is not None}
            texts: dict[str, Any] = {
                name: _text(home / file) for name, file in _TEXTS.items() if (home / file).is_file()
            }
            booted = "configure" not in texts and any((home / file).is_file() for file in _FIRST_BOOT)
            if written.like is not None:
                other = load_recipe(written.like, beside)
                if (home / "before.sh").is_file():
                    texts["bake"] = _text(home / "before.sh") + texts.get("bake", other.bake)
                texts["first_boot"] = booted or other.first_boot
                return dataclasses.replace(other, family=written.family, **given, **texts)
            for name in _COPIED:
                if name not in given and name != "optional":
                    raise ConfigError(f"{path}: the recipe has no '{name}'", "add it, or `like: debian`")
            return Recipe(family=written.family, first_boot=booted, **given, **texts)
    raise ConfigError(f"no recipe for the family '{family}'", f"write guests/{family}/recipe.yaml beside lab.yaml")


def load_key(name: str, beside: Path | None = None) -> Key:
    """A publisher's key that the catalogue ships."""
    for folder in _folders("images", beside):
        path = folder / "keys" / f"{name}.yaml"
        if path.is_file():
            return reader.load(path, Key, name=name, keyring=path.with_suffix(".gpg"))
    raise ConfigError(f"there is no key '{name}'", f"put it into images/keys/{name}.gpg, and say whose in {name}.yaml")


def architecture(image: Image, wanted: str, where: str = "") -> Architecture:
    """How `image` comes about on an architecture. `where` is who asked: file:line."""
    found = image.architectures.get(wanted)
    if found is None:
        prefix = f"{where}: " if where else ""
        raise ConfigError(
            f"{prefix}image '{image.name}' is not there for {wanted}", f"it is for: {', '.join(image.architectures)}"
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
