"""Test queries of an image's archive with the real apt: a signed archive on a local server, an image with its key."""

from __future__ import annotations

import functools
import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmlab.common.errors import LabError
from kmlab.common.events import Deadline
from kmlab.host.packages.apt import Archive, Source, parse_list, parse_sources

SOON = 60.0
RELEASE = "6.1.0-9-cloud-amd64"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@dataclass
class Distribution:
    """An archive in a folder, on a server, with a key of its own."""

    folder: Path
    home: Path
    uri: str

    def gpg(self, *words: str) -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--quiet", *words]
        return subprocess.run(argv, check=True, capture_output=True).stdout

    def new_key(self, name: str) -> bytes:
        self.gpg("--passphrase", "", "--quick-generate-key", f"{name} <{name}@example.org>", "ed25519", "sign", "never")
        return self.gpg("--export", name)

    def publish(self, suite: str, packages: dict[str, str], key: str = "archive") -> None:
        """Packages, by name with what each depends on; Release, signed."""
        pool = self.folder / "pool"
        stanzas = []
        for name, depends in packages.items():
            control = pool / name / "DEBIAN" / "control"
            control.parent.mkdir(parents=True, exist_ok=True)
            about = f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@x>\nDescription: x\n"
            about += f"Depends: {depends}\n" if depends else ""
            control.write_text(about)
            deb = pool / f"{name}.deb"
            tree = control.parent.parent
            subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, deb], check=True, capture_output=True)
            content = deb.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            stanzas.append(f"{about}Filename: pool/{name}.deb\nSize: {len(content)}\nSHA256: {digest}\n")
        index = "\n".join(stanzas).encode()
        place = self.folder / "dists" / suite / "main" / "binary-amd64" / "Packages"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(index)
        line = f" {hashlib.sha256(index).hexdigest()} {len(index)} main/binary-amd64/Packages\n"
        release = self.folder / "dists" / suite / "Release"
        release.write_text(
            f"Suite: old-{suite}\nCodename: {suite}\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nArchitectures: amd64\n"
            f"Components: main\nSHA256:\n{line}"
        )
        self.gpg("--local-user", key, "--clearsign", "--output", str(release.with_name("InRelease")), str(release))


@pytest.fixture
def distribution(xdg: Path) -> Iterator[Distribution]:
    folder, home = xdg / "archive", xdg / "gpg"
    folder.mkdir()
    home.mkdir(mode=0o700)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made = Distribution(folder, home, f"http://127.0.0.1:{server.server_port}")
    yield made
    server.shutdown()
    server.server_close()
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)


def image(xdg: Path, files: dict[str, bytes | str]) -> Path:
    """A disk whose root file system has these files."""
    root, disk = xdg / "root", xdg / "image" / "disk.qcow2"
    for name, content in {"var/lib/dpkg/status": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str) and content.startswith("-> "):
            (root / name).symlink_to(content.removeprefix("-> "))
        else:
            (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    disk.parent.mkdir()
    raw = xdg / "raw.img"
    argv = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", str(root), str(raw), "8M"]
    subprocess.run(argv, check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, disk], check=True)
    return disk


def opened(xdg: Path, disk: Path, *further: str) -> Archive:
    archive = Archive(xdg / "lists", "x86_64")
    archive.update(disk, further, Deadline(SOON), lambda line: None)
    return archive


KERNEL = {
    f"linux-image-{RELEASE}": "kmod",
    f"linux-headers-{RELEASE}": f"linux-kbuild-6.1, gcc-12, linux-image-{RELEASE}",
    "linux-kbuild-6.1": "",
    "kmod": "",
    "gcc-12": "",
}
STATUS = "Package: kmod\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\nMaintainer: x\nDescription: x\n"


def test_only_packages_that_the_image_does_not_have_are_fetched(xdg: Path, distribution: Distribution) -> None:
    key = distribution.new_key("archive")
    distribution.publish("tin", KERNEL)
    disk = image(
        xdg,
        {
            "etc/apt/sources.list": f"deb {distribution.uri} tin main\n",
            "etc/apt/trusted.gpg.d/archive.gpg": key,
            "var/lib/dpkg/status": STATUS,
        },
    )
    archive = opened(xdg, disk)
    assert archive.status == STATUS
    ((suite, text),) = archive.indexes()
    assert suite == "tin" and f"Package: linux-image-{RELEASE}\n" in text
    debs = archive.fetch(
        [f"linux-image-{RELEASE}=1", f"linux-headers-{RELEASE}=1"], None, Deadline(SOON), lambda _: None
    )
    names = [path.name.partition("_")[0] for path in debs]
    assert names == ["gcc-12", f"linux-headers-{RELEASE}", f"linux-image-{RELEASE}", "linux-kbuild-6.1"]


def test_an_extra_suite_of_the_same_server_is_verified_with_the_same_key(xdg: Path, distribution: Distribution) -> None:
    key = distribution.new_key("archive")
    distribution.publish("tin", {"kmod": ""})
    distribution.publish("tin-backports", KERNEL)
    disk = image(
        xdg,
        {
            "etc/apt/mirrors/here.list": f"{distribution.uri}\n",
            "etc/apt/sources.list.d/a.sources": (
                "# ours\nTypes: deb deb-src\nURIs: mirror+file:///etc/apt/mirrors/here.list\nSuites: tin\n"
                "Components: main\nSigned-By: /usr/share/keyrings/archive.gpg\n"
            ),
            "usr/share/keyrings/archive.pgp": key,
            "usr/share/keyrings/archive.gpg": "-> archive.pgp",
        },
    )
    archive = opened(xdg, disk, "tin-backports")
    assert sorted(suite for suite, _ in archive.indexes()) == ["tin", "tin-backports"]
    debs = archive.fetch([f"linux-image-{RELEASE}=1"], "tin-backports", Deadline(SOON), lambda _: None)
    assert len(debs) == 2


@pytest.mark.parametrize("options", ["", "[trusted=yes] ", "[allow-insecure=yes] "])
def test_an_archive_signed_by_another_key_is_always_refused(
    xdg: Path, distribution: Distribution, options: str
) -> None:
    key = distribution.new_key("archive")
    distribution.new_key("stranger")
    distribution.publish("tin", KERNEL, key="stranger")
    source = f"deb {options}{distribution.uri} tin main\n"
    disk = image(xdg, {"etc/apt/sources.list": source, "etc/apt/trusted.gpg.d/archive.gpg": key})
    with pytest.raises(LabError, match=r"cannot read the image.s package archive: .*not signed"):
        opened(xdg, disk)


def test_a_changed_index_or_package_is_refused(xdg: Path, distribution: Distribution) -> None:
    key = distribution.new_key("archive")
    distribution.publish("tin", KERNEL)
    source = f"deb {distribution.uri} tin main\n"
    disk = image(xdg, {"etc/apt/sources.list": source, "etc/apt/trusted.gpg.d/archive.gpg": key})
    archive = opened(xdg, disk)
    deb = distribution.folder / "pool" / "kmod.deb"
    deb.write_bytes(deb.read_bytes()[:-1] + b"x")
    with pytest.raises(LabError, match="cannot fetch"):
        archive.fetch([f"linux-image-{RELEASE}=1"], None, Deadline(SOON), lambda _: None)
    index = distribution.folder / "dists/tin/main/binary-amd64/Packages"
    index.write_bytes(index.read_bytes().replace(b"Version: 1", b"Version: 2"))
    with pytest.raises(LabError, match="cannot read the image's package archive"):
        Archive(xdg / "anew", "x86_64").update(disk, (), Deadline(SOON), lambda _: None)


def test_no_program_of_an_image_s_configuration_runs_and_no_link_out_of_it_is_followed(
    xdg: Path, distribution: Distribution
) -> None:
    key = distribution.new_key("archive")
    distribution.publish("tin", {"kmod": ""})
    (xdg / "secret.gpg").write_bytes(b"not the image's")
    disk = image(
        xdg,
        {
            "etc/apt/sources.list": f"deb {distribution.uri} tin main\n",
            "etc/apt/trusted.gpg.d/archive.gpg": key,
            "etc/apt/trusted.gpg.d/out.gpg": f"-> {xdg}/secret.gpg",
            "etc/apt/apt.conf.d/99run": f'APT::Update::Pre-Invoke {{ "touch {xdg}/was-here"; }};\n',
            "etc/apt/apt.conf": f'APT::Update::Pre-Invoke {{ "touch {xdg}/was-here"; }};\n',
        },
    )
    opened(xdg, disk)
    assert not (xdg / "was-here").exists()
    assert [path.name for path in (xdg / "lists/root/etc/apt/trusted.gpg.d").iterdir()] == ["archive.gpg"]


def test_an_image_without_a_source_on_the_network_is_an_error(xdg: Path) -> None:
    disk = image(xdg, {"etc/apt/sources.list": "deb file:/srv/mirror tin main\ndeb cdrom:[x]/ tin main\n"})
    with pytest.raises(LabError, match="/etc/apt of this image has no package source"):
        opened(xdg, disk)


def test_both_formats_of_sources_are_read() -> None:
    one = "# deb http://a x\ndeb-src http://a x main\ndeb [arch=amd64 signed-by=/k.gpg] http://a x main contrib # why\n"
    assert list(parse_list(one)) == [Source("http://a", "x", ("main", "contrib"), ("/k.gpg",))]
    many = (
        "Types: deb\nURIs: http://a http://b\nSuites: x\n y\nComponents: main\nSigned-By:\n /k.gpg\n\n"
        "Types: deb-src\nURIs: http://a\nSuites: x\n\nEnabled: no\nTypes: deb\nURIs: http://c\nSuites: x\n"
    )
    assert [(s.uri, s.suite, s.signed_by) for s in parse_sources(many)] == [
        (uri, suite, ("/k.gpg",)) for uri in ("http://a", "http://b") for suite in ("x", "y")
    ]
