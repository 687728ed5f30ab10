"""Test the catalogue: every entry loads, and an unknown name is reported with the nearest one."""

from __future__ import annotations

import re
import subprocess
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.config import catalog
from kmlab.config.lab import load_lab
from kmlab.provision.plan.plan import make_plan
from kmlab.testing import World
from kmlab.virt.domain import SERIAL_PORTS

HOME = Path(catalog.__file__).parents[2]
IMAGES = sorted(path.stem for path in (HOME / "images").glob("*.yaml"))
FAMILIES = sorted(path.parent.name for path in (HOME / "guests").glob("*/recipe.yaml"))


def test_the_catalogue_has_entries() -> None:
    wanted = {"debian-12", "debian-12-cloud", "debian-13-cloud"}
    wanted |= {f"ubuntu-{release}" for release in ("22.04", "24.04", "25.10", "26.04")}
    assert wanted <= set(IMAGES)
    assert catalog.image_names() == IMAGES
    assert FAMILIES == ["debian", "ubuntu"]


@pytest.mark.parametrize("name", IMAGES)
def test_every_image_loads_and_its_family_has_a_recipe(name: str) -> None:
    image = catalog.load_image(name)
    assert image.name == name
    assert image.architectures
    assert catalog.load_recipe(image.family).family == image.family


@pytest.mark.parametrize("family", FAMILIES)
def test_every_recipe_has_scripts_for_baking_and_for_idling(family: str) -> None:
    recipe = catalog.load_recipe(family)
    assert recipe.user_data and recipe.bake and recipe.idle
    assert "{release}" in recipe.headers
    assert "console=tty" in recipe.cmdline


@pytest.mark.parametrize("name", IMAGES)
def test_a_published_image_has_both_architectures_in_the_publisher_s_layout(name: str) -> None:
    image = catalog.load_image(name)
    if image.publisher is None:
        return
    assert set(image.architectures) == {"x86_64", "aarch64"}
    assert "{serial}" in image.publisher.dated
    for arch, dpkg in (("x86_64", "amd64"), ("aarch64", "arm64")):
        download = image.architectures[arch].download
        assert download is not None and dpkg in download.file and image.release in download.file
    if image.publisher.key is not None:
        key = catalog.load_key(image.publisher.key)
        assert key.keyring.is_file() and key.origin


@pytest.mark.parametrize("name", IMAGES)
def test_a_published_image_is_pinned_for_both_architectures(name: str) -> None:
    image = catalog.load_image(name)
    if image.publisher is None:
        return
    pins = [entry.download.pin for entry in image.architectures.values() if entry.download is not None]
    for pin in pins:
        assert pin is not None and pin.serial is not None
        assert len(pin.digest) == {"SHA256SUMS": 64, "SHA512SUMS": 128}[image.publisher.sums]
        # Without a time, a release that has left the server would be an error. A signature is made after its release.
        day = datetime.strptime(pin.serial[:8], "%Y%m%d").replace(tzinfo=timezone.utc).timestamp()
        assert pin.signed is None if image.publisher.key is None else (pin.signed or 0) >= day
    assert len({pin.digest for pin in pins if pin}) == len(pins)


KEYS = sorted(path.stem for path in (HOME / "images" / "keys").glob("*.yaml"))


@pytest.mark.parametrize("name", KEYS)
def test_a_key_file_has_the_one_key_that_its_description_names(name: str, tmp_path: Path) -> None:
    key = catalog.load_key(name)
    # A new user has no ~/.gnupg, and with --no-options gpg does not make it.
    tmp_path.chmod(0o700)
    argv = ["gpg", "--batch", "--homedir", str(tmp_path), "--with-colons", "--show-keys", str(key.keyring)]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    # Others may revoke the keys of Debian's archive: these `rvk` lines come in between.
    keys = [line for line in listed if line.startswith(("pub:", "fpr:"))]
    primary = [after for line, after in pairwise(keys) if line.startswith("pub:")]
    assert [line.split(":")[9] for line in primary] == [key.fingerprint]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_of_debian_s_packages_brings_the_keys_of_both_releases(name: str) -> None:
    image = catalog.load_image(name)
    built = [entry.packages for entry in image.architectures.values() if entry.packages is not None]
    assert bool(image.archive_keys) == bool(built)
    if built:
        assert {key.rpartition("-")[0] for key in image.archive_keys} == {"debian-12", "debian-13"}
    assert all(catalog.load_key(key).keyring.is_file() for key in image.archive_keys)


def test_a_recipe_inherits_missing_fields_from_the_one_it_is_like() -> None:
    ubuntu, debian = catalog.load_recipe("ubuntu"), catalog.load_recipe("debian")
    assert ubuntu.family == "ubuntu"
    assert ubuntu.optional == ("linux-modules-extra-{release}",)
    assert (ubuntu.idle, ubuntu.cmdline) == (debian.idle, debian.cmdline)
    assert ubuntu.bake.endswith(debian.bake) and "ssh.service.requires" in ubuntu.bake.removesuffix(debian.bake)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("server: https://a.example", "server: http://a.example"),
        ("newest: a/b", "newest: ../b"),
        ("file: a.img", "file: ../a.img"),
        ("sums: SHA256SUMS", "sums: /etc/passwd"),
        ("pin: null", "pin: {serial: '20260101', digest: abc}"),
        ("pin: null", "pin: {serial: ../.., digest: " + "0" * 64 + "}"),
        ("key: k", "key: null"),
        ("download: {", "packages: {distribution: d, suite: s, kernel: k}, download: {"),
    ],
)
def test_an_entry_that_would_leave_its_place_or_its_word_is_refused(tmp_path: Path, part: str, wrong: str) -> None:
    (tmp_path / "images").mkdir()
    text = (
        "family: debian\nrelease: '1'\npublisher:\n  server: https://a.example\n  newest: a/b\n"
        "  dated: a/{serial}\n  sums: SHA256SUMS\n  signature: SHA256SUMS.gpg\n  key: k\n"
        "architectures: {x86_64: {download: {file: a.img, pin: null}}}\n"
    )
    (tmp_path / "images" / "a.yaml").write_text(text)
    assert catalog.load_image("a", tmp_path).publisher is not None
    assert part in text
    (tmp_path / "images" / "a.yaml").write_text(text.replace(part, wrong))
    with pytest.raises(ConfigError, match=r"a\.yaml:\d+"):
        catalog.load_image("a", tmp_path)


def test_an_unknown_image_is_reported_with_its_place_and_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"^lab\.yaml:4: unknown image 'debain-12'$") as caught:
        catalog.load_image("debain-12", None, "lab.yaml:4")
    assert caught.value.hint is not None and "debian-12" in caught.value.hint


def test_a_guest_s_unknown_image_is_reported_with_the_line_in_lab_yaml(
    xdg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(xdg)
    (xdg / "lab.yaml").write_text("name: a\nguests:\n  g:\n    cpus: 1\n    image: debian-1\n")
    lab = load_lab(Path("lab.yaml"))
    with World() as world, pytest.raises(ConfigError, match=r"^lab\.yaml:5: unknown image 'debian-1'$"):
        make_plan(world.host, lab, lab.guest("g"))


def test_an_unknown_recipe_says_where_to_write_one() -> None:
    with pytest.raises(ConfigError, match="no recipe for the family 'plan9'") as caught:
        catalog.load_recipe("plan9")
    assert caught.value.hint == "write guests/plan9/recipe.yaml next to lab.yaml"


def test_a_lab_s_own_image_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    text = (HOME / "images" / "debian-12.yaml").read_text().replace('release: "12"', 'release: "mine"')
    (tmp_path / "images" / "debian-12.yaml").write_text(text)
    (tmp_path / "images" / "own.yaml").write_text(text)
    assert catalog.load_image("debian-12", tmp_path).release == "mine"
    assert catalog.load_image("debian-12").release == "12"
    assert "own" in catalog.image_names(tmp_path)


def test_an_entry_with_an_unknown_key_is_reported_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    text = (HOME / "images" / "debian-12.yaml").read_text().replace("family:", "famly:")
    (tmp_path / "images" / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"^images/own\.yaml:\d+: .*famly"):
        catalog.load_image("own", tmp_path)


def test_a_missing_architecture_is_reported_with_the_available_ones() -> None:
    with pytest.raises(ConfigError, match="image 'debian-12' is not available for riscv64") as caught:
        catalog.find_architecture(catalog.load_image("debian-12"), "riscv64")
    assert caught.value.hint == "available for: x86_64, aarch64"


def test_the_image_already_has_what_builds_need() -> None:
    image, recipe = catalog.load_image("debian-12"), catalog.load_recipe("debian")
    source = catalog.find_architecture(image, "x86_64").packages
    assert source is not None
    packages = catalog.built_packages(source, recipe, "linux-headers-cloud-amd64")
    assert {"gcc", "make", "linux-image-cloud-amd64", "linux-headers-cloud-amd64", "shim-signed"} <= set(packages)
    assert packages == sorted(set(packages))


def test_the_script_that_makes_the_root_makes_it_a_guest_of_that_recipe() -> None:
    recipe = catalog.load_recipe("debian")
    script = catalog.root_script(recipe, "ssh-ed25519 AAAA me")
    assert "mke2fs" in script and recipe.configure in script and recipe.cmdline.strip() in script
    assert "echo 'ssh-ed25519 AAAA me' >" in script and not re.search("@[A-Z_]+@", script)


def test_the_first_boot_does_what_is_done_to_an_unpacked_system() -> None:
    recipe = catalog.load_recipe("debian")
    assert f"(\n{recipe.configure})\n" in catalog.insert_configure(recipe.bake, recipe)


@pytest.mark.parametrize(
    ("files", "booted"),
    [
        ({}, False),
        ({"idle.sh": "true"}, False),
        ({"configure.sh": "true"}, False),
        ({"before.sh": "true"}, True),
        ({"bake.sh": "true"}, True),
        ({"user-data.yaml": "users: [me]"}, True),
        ({"user-data.yaml": "users: [me]", "configure.sh": "useradd me"}, False),
    ],
)
def test_files_that_only_a_first_boot_runs_require_one(files: dict[str, str], booted: bool, tmp_path: Path) -> None:
    home = tmp_path / "guests" / "mine"
    home.mkdir(parents=True)
    for name, text in {"recipe.yaml": "family: mine\nlike: debian\n", **files}.items():
        (home / name).write_text(text)
    recipe = catalog.load_recipe("mine", tmp_path)
    assert recipe.first_boot == booted
    assert "bake.sh" in files or files.get("configure.sh", recipe.configure) in catalog.insert_configure(
        recipe.bake, recipe
    )


def test_a_recipe_uses_the_name_of_the_machine_s_first_serial_port() -> None:
    recipe = catalog.load_recipe("ubuntu")
    for arch, port in SERIAL_PORTS.items():
        fitted = catalog.with_serial_port(recipe, port)
        assert f"console={port},115200" in fitted.cmdline
        assert f"serial-getty@{port}.service" in fitted.configure
        assert f"StandardInput=file:/dev/{port} " in fitted.idle and f"stty -F /dev/{port} " in fitted.idle
        assert (fitted == recipe) == (arch == "x86_64")
