"""Read the catalogue: the images that can be booted (images/*.yaml) and the recipes for guests (guests/*/).

A lab can have its own `images/` and `guests/` next to lab.yaml; they take precedence over those of kmlab.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmlab.common.errors import ConfigError
from kmlab.config.yaml import reader
from kmlab.config.yaml.types import AnyDigest, FileName, Fingerprint, FolderName, HttpsUrl, Name, OneLine, Serial, Time

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSource:
    """An image that is built on this host from a distribution's signed packages."""

    distribution: str
    suite: str
    kernel: str
    """The package of the default kernel, such as linux-image-cloud-amd64."""
    include: tuple[str, ...] = ()
    """Packages that only this image needs, such as the signed boot chain."""
    root_size: int = 4 << 30
    """Bytes of the root file system; it is sparse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """The release of a published image, and the digest that it must have."""

    serial: Serial | None = None
    """None means the newest."""
    digest: AnyDigest
    """The image's digest, of the same kind as in the publisher's checksum file."""
    signed: Time | None = None
    """When the publisher signed the checksums. Older checksums are rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """An image that its publisher made."""

    file: FileName
    """The image's name in the publisher's folder of the newest release."""
    dated_file: FileName | None = None
    """The image's name in the folder of one release, if it differs."""
    pin: Pin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """The server of images, and how to verify them."""

    server: HttpsUrl
    newest: FolderName
    """The folder of the newest release."""
    dated: FolderName
    """The folder of the release `{serial}`."""
    sums: FileName
    """The checksum file in each of these folders: SHA256SUMS or SHA512SUMS."""
    signature: FileName | None = None
    """The detached signature of the checksum file; None if the publisher signs nothing."""
    key: FileName | None = None
    """images/keys/KEY.gpg, described in KEY.yaml: the only accepted key."""

    def __post_init__(self) -> None:
        if (self.signature is None) != (self.key is None):
            raise ConfigError("needs both 'signature' and 'key', or neither", "a publisher that signs nothing has none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A publisher's public key: images/keys/NAME.yaml and NAME.gpg."""

    name: str
    keyring: Path
    fingerprint: Fingerprint
    origin: OneLine
    """The source of the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How to get the image for one architecture: build it here, or download it."""

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
    """The recipe guests/FAMILY/ that turns the image into a guest."""
    release: str
    architectures: dict[str, Architecture]
    """The key is the output of `uname -m`."""
    kernel_suites: tuple[str, ...] = ()
    """Suites that provide kernels, in addition to those of the image's own apt."""
    expired_indexes: bool = False
    """Whether to accept indexes after their Valid-Until date, for a mirror that is rarely updated. They are still
    verified, but may be outdated."""
    publisher: Publisher | None = None
    """The publisher of a downloaded image."""
    archive_keys: tuple[FileName, ...] = ()
    """images/keys/KEY.gpg: keys that may sign the packages of an image that is built here, besides the host's own."""

    def __post_init__(self) -> None:
        if self.publisher is None and any(a.download for a in self.architectures.values()):
            raise ConfigError("has a 'download' and no 'publisher'", "add the server: publisher: {server: …}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The recipe guests/FAMILY/: how an image of that family becomes a guest that builds modules."""

    family: str
    system: tuple[str, ...]
    """Packages that the guest needs to boot and to be reached."""
    packages: tuple[str, ...]
    """Packages to build, load and observe modules."""
    headers: str
    """The name of the headers package of the kernel `{release}`."""
    cmdline: str
    optional: tuple[str, ...] = ()
    """Packages to install if the archive has them. `{release}` is the kernel's release."""
    user_data: str = ""
    """cloud-init's configuration, as YAML."""
    configure: str = ""
    """The script that configures an unpacked or booted system as a guest."""
    bake: str = ""
    """The script that runs once in the guest that becomes a base. It includes `configure`: see `insert_configure`."""
    first_boot: bool = False
    """Whether the recipe needs a first boot, because `configure` is not enough."""
    idle: str = ""
    """The script that runs in a booted base before its memory is saved."""
    families: tuple[str, ...] = ()
    """The family, and those that it is like. The first distribution among them provides packages and kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFile:
    """The content of a recipe.yaml. The recipe named by `like` provides all missing fields."""

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
"""The files that only a first boot runs. If the recipe has a configure.sh, it does the same without a boot."""
_CONFIGURE = "\n@CONFIGURE@\n"
"""The line in bake.sh and root.sh that configure.sh replaces."""


def root_script(recipe: Recipe, authorized_key: str) -> str:
    """Return the script (images/root.sh) that turns an unpacked system into the root file system of a guest."""
    script = (catalogue_folders("images", None)[-1] / "root.sh").read_text(encoding="utf-8")
    script = insert_configure(script, recipe).replace("@CMDLINE@", recipe.cmdline.strip())
    return script.replace("@AUTHORIZED_KEY@", authorized_key)


def with_serial_port(recipe: Recipe, port: str) -> Recipe:
    """Return the recipe for machines whose first serial port is `port`. Recipes call it ttyS0."""
    names = ("cmdline", "user_data", "configure", "bake", "idle")
    texts: dict[str, Any] = {name: re.sub(r"\bttyS0\b", port, getattr(recipe, name)) for name in names}
    return dataclasses.replace(recipe, **texts)


def insert_configure(script: str, recipe: Recipe) -> str:
    """Insert the recipe's configure.sh into a script, at the line @CONFIGURE@."""
    return script.replace(_CONFIGURE, f"\n{recipe.configure.rstrip()}\n")


def agent_source() -> str:
    """Return the C source of the guest's agent (guests/agent.c)."""
    return _program("agent.c")


def fuzz_source() -> str:
    """Return the C source of the program that calls a device with bad arguments (guests/fuzz.c)."""
    return _program("fuzz.c")


def reproducer_source() -> str:
    """Return the C source of the program that makes calls again, with marks for them (guests/reproducer.c)."""
    return _program("reproducer.c")


def _program(file: str) -> str:
    return (catalogue_folders("guests", None)[-1] / file).read_text(encoding="utf-8")


def image_names(lab_folder: Path | None = None) -> list[str]:
    """Return the names of all images of the catalogue, sorted."""
    return sorted({path.stem for folder in catalogue_folders("images", lab_folder) for path in folder.glob("*.yaml")})


def load_image(name: str, lab_folder: Path | None = None, where: str = "") -> Image:
    """Read the image `name`. Raise ConfigError if there is none; `where` is the file:line that refers to it."""
    for folder in catalogue_folders("images", lab_folder):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return reader.load(path, Image, name=name)
    prefix = f"{where}: " if where else ""
    names = image_names(lab_folder)
    raise ConfigError(f"{prefix}unknown image '{name}'", reader.nearest(name, names, "images"))


def load_recipe(family: str, lab_folder: Path | None = None) -> Recipe:
    """Read the recipe of a family of distributions, including the fields of the recipe named by `like`."""
    for folder in catalogue_folders("guests", lab_folder):
        home = folder / family
        path = home / "recipe.yaml"
        if path.is_file():
            written = reader.load(path, RecipeFile)
            given: dict[str, Any] = {name: value for name in _COPIED if (value := getattr(written, name)) is not None}
            texts: dict[str, Any] = {
                name: _text(home / file) for name, file in _TEXTS.items() if (home / file).is_file()
            }
            booted = "configure" not in texts and any((home / file).is_file() for file in _FIRST_BOOT)
            if written.like is not None:
                other = load_recipe(written.like, lab_folder)
                if (home / "before.sh").is_file():
                    texts["bake"] = _text(home / "before.sh") + texts.get("bake", other.bake)
                texts["first_boot"] = booted or other.first_boot
                families = (family, *other.families)
                return dataclasses.replace(other, family=written.family, families=families, **given, **texts)
            for name in _COPIED:
                if name not in given and name != "optional":
                    raise ConfigError(f"{path}: the recipe has no '{name}'", "add it, or `like: debian`")
            return Recipe(family=written.family, families=(family,), first_boot=booted, **given, **texts)
    raise ConfigError(f"no recipe for the family '{family}'", f"write guests/{family}/recipe.yaml next to lab.yaml")


def load_key(name: str, lab_folder: Path | None = None) -> Key:
    """Read a publisher's key from the catalogue. Raise ConfigError if there is none."""
    for folder in catalogue_folders("images", lab_folder):
        path = folder / "keys" / f"{name}.yaml"
        if path.is_file():
            return reader.load(path, Key, name=name, keyring=path.with_suffix(".gpg"))
    raise ConfigError(f"there is no key '{name}'", f"save it as images/keys/{name}.gpg, and describe it in {name}.yaml")


def find_architecture(image: Image, arch: str, where: str = "") -> Architecture:
    """Return how to get `image` for `arch`. Raise ConfigError if it has none; `where` is the file:line that asks."""
    architecture = image.architectures.get(arch)
    if architecture is None:
        prefix = f"{where}: " if where else ""
        raise ConfigError(
            f"{prefix}image '{image.name}' is not available for {arch}",
            f"available for: {', '.join(image.architectures)}",
        )
    return architecture


def built_packages(source: PackageSource, recipe: Recipe, headers: str) -> list[str]:
    """Return all packages to install into an image when it is built, sorted, so that baking has little to do.

    `headers` is the headers package of its kernel.
    """
    return sorted({*recipe.system, *recipe.packages, *source.include, source.kernel, headers})


def catalogue_folders(kind: str, lab_folder: Path | None) -> list[Path]:
    """Return the lab's own folder, then kmlab's: inside the package in a wheel, next to it in a checkout."""
    candidates = [lab_folder / kind] if lab_folder else []
    candidates += [_PACKAGE / kind, _PACKAGE.parent / kind]
    return [folder for folder in candidates if folder.is_dir()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read this part of the recipe: {error}") from None
