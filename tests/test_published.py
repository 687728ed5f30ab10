"""Published images from a local HTTPS server: what is taken, and some thirty ways of tampering that are not.

The door to QEMU's tools is watched: of an image that was not verified they never see a byte.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kmlab import catalog, provision, store
from kmlab.errors import ConfigError, ImageError, KmlabError, LabError
from kmlab.events import Event, Note, silent
from kmlab.host import gpgv
from kmlab.lab import load_lab
from kmlab.provision import trust
from kmlab.testing import World
from tests.publisher import Publisher, Request, Server, Signer, described, disk_image

OLD, NEW = "20260110", "20260220"
HOST = os.uname().machine


class Site:
    """A lab that takes its image from a publisher, and a record of every call of QEMU's tools."""

    def __init__(self, folder: Path, publisher: Publisher, calls: Path) -> None:
        self.folder, self.publisher, self.calls = folder, publisher, calls
        self.notes: list[str] = []
        self.lab("testix")
        publisher.catalogue(folder)

    def lab(self, image: str, more: str = "") -> None:
        (self.folder / "lab.yaml").write_text(f"name: t\n{more}guests:\n  g: {{image: {image}}}\n")

    def hear(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event.text)

    def pull(self, *, refresh: bool = True) -> Path:
        lab = load_lab(self.folder / "lab.yaml")
        with World() as world:
            return provision.guest_image(world.host, lab, lab.guest("g"), self.hear, refresh=refresh)

    @property
    def cached(self) -> list[str]:
        """Names in the cache of images, and of half-made ones."""
        places = (store.images(), store.work())
        return [p.name for place in places if place.is_dir() for p in place.iterdir() if p.is_dir()]

    def nothing_was_read(self) -> bool:
        """Whether no byte was shown to QEMU's tools, or lies in the cache under its final name."""
        return not self.calls.exists() and self.cached == []


@pytest.fixture
def site(xdg: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The tools of QEMU note that they were called, by a shell script before them in PATH."""
    shims = xdg / "bin"
    shims.mkdir()
    for tool in ("qemu-img", "qemu-system-x86_64", "qemu-system-aarch64", "qemu-nbd", "qemu-io"):
        (shims / tool).write_text(f'#!/bin/sh\necho "{tool} $*" >> {xdg}/calls\nPATH=${{PATH#*:}} exec {tool} "$@"\n')
        (shims / tool).chmod(0o755)
    made = Site(xdg, publisher, xdg / "calls")
    monkeypatch.setenv("PATH", f"{shims}:{os.environ['PATH']}")
    return made


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """An old and a new disk."""
    folder = tmp_path_factory.mktemp("disks")
    return disk_image(folder, "8M"), disk_image(folder, "16M")


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_a_signed_release_is_taken_and_kept_with_what_vouches_for_it(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    disk = site.pull()
    assert disk.read_bytes() == images[1]
    assert disk.stat().st_mode & 0o777 == 0o444
    about = described(disk.parent / "image.json")
    assert about["digest"] == hashlib.sha256(images[1]).hexdigest()
    assert about["virtual_size"] == str(16 << 20)
    assert site.publisher.signer.fingerprint in str(about["by"])
    assert provision.vouched_for(disk.parent, site.folder) is None
    assert not list(store.downloads().glob("*.part*"))


def test_once_it_is_there_the_publisher_is_not_asked_again(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    disk = site.pull(refresh=False)
    before = list(site.publisher.server.asked)
    assert site.pull(refresh=False) == disk
    assert site.publisher.server.asked == before


def test_a_pull_takes_a_newer_release_and_keeps_the_old_one_for_what_stands_on_it(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    site.publisher.publish(OLD, images[0])
    old = site.pull()
    site.publisher.publish(NEW, images[1])
    assert site.pull(refresh=False) == old
    assert site.pull().read_bytes() == images[1]
    assert old.read_bytes() == images[0]


def pin(image: bytes, serial: str = OLD, signed: str = "2026-01-10T00:00:00Z") -> str:
    return f"{{serial: '{serial}', digest: {hashlib.sha256(image).hexdigest()}, signed: {signed}}}"


def test_a_pinned_release_is_taken_from_its_dated_folder(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(OLD, images[0])
    site.publisher.publish(NEW, images[1])
    site.publisher.catalogue(site.folder, pin=pin(images[0]))
    assert site.pull().read_bytes() == images[0]
    assert all("release-20260110/" in path for path, _ in site.publisher.server.asked)


def test_when_the_pinned_release_is_gone_the_newest_is_taken_if_it_is_newer_and_told(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    site.publisher.publish(NEW, images[1])
    site.publisher.catalogue(site.folder, pin=pin(images[0]))
    assert site.pull().read_bytes() == images[1]
    assert any("release 20260110 is gone" in note for note in site.notes)


def test_a_publisher_that_signs_nothing_is_taken_by_the_pinned_digest(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(OLD, images[0])
    site.publisher.catalogue(site.folder, signed=False, pin=pin(images[0]))
    assert site.pull().read_bytes() == images[0]
    assert [path.rpartition("/")[2] for path, _ in site.publisher.server.asked] == [site.publisher.file]


def test_or_by_the_digest_in_lab_yaml_of_either_kind(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(OLD, images[0])
    site.publisher.catalogue(site.folder, signed=False)
    for kind in ("sha256", "sha512"):
        site.lab(f"{{name: testix, serial: '{OLD}', digest: {hashlib.new(kind, images[0]).hexdigest()}}}")
        assert site.pull().read_bytes() == images[0]


def test_or_when_lab_yaml_says_unverified_and_that_is_told(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    site.publisher.catalogue(site.folder, signed=False)
    with pytest.raises(ImageError, match="signs nothing") as caught:
        site.pull()
    assert caught.value.hint is not None and "unverified: true" in caught.value.hint and site.nothing_was_read()
    site.lab("{name: testix, unverified: true}")
    assert site.pull().read_bytes() == images[1]
    assert any("nobody vouches" in note for note in site.notes)


def test_an_image_of_one_s_own_by_its_url(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.server.files["own.img"] = images[0]
    url = f"{site.publisher.server.url}/own.img"
    site.lab(f"{{url: '{url}', sha256: {hashlib.sha256(images[0]).hexdigest()}, family: debian}}")
    assert site.pull().read_bytes() == images[0]
    site.lab(f"{{url: '{url}', unverified: true, family: debian}}")
    assert site.pull(refresh=False).read_bytes() == images[0]
    assert any("nobody vouches" in note for note in site.notes)


def test_an_image_of_one_s_own_by_its_path_is_taken_anew_when_it_changes(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    own = site.folder / "own.img"
    own.write_bytes(images[0])
    site.lab("{path: own.img, family: ubuntu}")
    first = site.pull(refresh=False)
    assert first.read_bytes() == images[0] and own.exists()
    assert site.pull(refresh=False) == first
    own.write_bytes(images[1])
    second = site.pull(refresh=False)
    assert second.read_bytes() == images[1] and first.read_bytes() == images[0]


def test_a_raw_disk_is_taken_only_with_a_digest(site: Site) -> None:
    raw = os.urandom(65536) + bytes(1 << 20)
    (site.folder / "own.raw").write_bytes(raw)
    site.lab("{path: own.raw, family: debian}")
    with pytest.raises(ImageError, match="does not begin as a qcow2 file does"):
        site.pull()
    assert site.nothing_was_read()
    site.lab(f"{{path: own.raw, sha256: {hashlib.sha256(raw).hexdigest()}, family: debian}}")
    disk = site.pull()
    assert disk.read_bytes()[:4] == b"QFI\xfb"
    assert "convert -f raw" in site.calls.read_text()


def test_an_own_image_says_its_family(site: Site, images: tuple[bytes, bytes]) -> None:
    (site.folder / "own.img").write_bytes(images[0])
    site.lab("{path: own.img}")
    with pytest.raises(ConfigError, match=r"lab\.yaml:3: an image of your own needs a family"):
        site.pull()
    (site.folder / "lab.yaml").write_text("name: t\nguests:\n  g: {image: {path: own.img}, recipe: debian}\n")
    assert site.pull().read_bytes() == images[0]


@pytest.mark.parametrize("where", ["environment", "lab.yaml"])
def test_a_mirror_stands_for_the_publisher_and_is_trusted_no_more(
    site: Site, images: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    site.publisher.catalogue(site.folder, server="https://images.example.invalid")
    site.publisher.folder = "mirrors/images.example.invalid/releases/testix"
    site.publisher.publish(NEW, images[1])
    mirror = f"{site.publisher.server.url}/mirrors/{{host}}"
    if where == "environment":
        monkeypatch.setenv("KMLAB_MIRROR", mirror)
    else:
        site.lab("testix", f"mirror: '{mirror}'\n")
    assert site.pull().read_bytes() == images[1]
    files = site.publisher.server.files
    for name in [name for name in files if name.endswith("SHA256SUMS")]:
        files[name] = files[name] + b"#\n"
    with pytest.raises(ImageError, match="altered after it was signed"):
        site.pull()


# --- tampering -------------------------------------------------------------------------------------------------------

Tamper = Callable[[Publisher, Signer, bytes, bytes], None]


def at(publisher: Publisher, name: str) -> str:
    return f"{publisher.folder}/release/{name}"


def _altered_image(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, p.file)] = new[:-1] + bytes([new[-1] ^ 1])


def _another_image(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, p.file)] = old


def _short_image(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, p.file)] = new[: len(new) // 2]


def _longer_image(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, p.file)] = new + b"\0"


def _empty_image(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, p.file)] = b""


def _page_for_an_image(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, p.file)] = b"<html>please log in</html>"


def _altered_sums(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    name = at(p, "SHA256SUMS")
    good, bad = hashlib.sha256(new).hexdigest(), hashlib.sha256(old).hexdigest()
    p.server.files[name] = p.server.files[name].replace(good.encode(), bad.encode())
    p.server.files[at(p, p.file)] = old


def _longer_sums(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, "SHA256SUMS")] += f"{hashlib.sha256(old).hexdigest()} *{p.file}\n".encode()


def _signed_by_another(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    sums = f"{hashlib.sha256(old).hexdigest()} *{p.file}\n".encode()
    p.server.files[at(p, "SHA256SUMS")] = sums
    p.server.files[at(p, "SHA256SUMS.gpg")] = stranger.sign(sums)
    p.server.files[at(p, p.file)] = old


def _signed_by_both(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    sums = p.server.files[at(p, "SHA256SUMS")]
    p.server.files[at(p, "SHA256SUMS.gpg")] = p.signer.gpg(
        "--dearmor", data=p.signer.sign(b"something else")
    ) + stranger.gpg("--dearmor", data=stranger.sign(sums))


def _no_signature(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    del p.server.files[at(p, "SHA256SUMS.gpg")]


def _empty_signature(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, "SHA256SUMS.gpg")] = b""


def _junk_signature(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, "SHA256SUMS.gpg")] = os.urandom(500)


def _status_lines_for_a_signature(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    fpr = p.signer.fingerprint
    p.server.files[at(p, "SHA256SUMS.gpg")] = (
        f"\n[GNUPG:] GOODSIG 0 x\n[GNUPG:] VALIDSIG {fpr} 2026-01-01 1767225600 0 4 0 22 10 00 {fpr}\n".encode()
    )


def _key_for_a_signature(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, "SHA256SUMS.gpg")] = p.signer.public_key()


def _signed_text_for_a_signature(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    sums = f"{hashlib.sha256(old).hexdigest()} *{p.file}\n".encode()
    p.server.files[at(p, "SHA256SUMS.gpg")] = p.signer.clearsign(b"something else, truly signed\n")
    p.server.files[at(p, "SHA256SUMS")] = sums
    p.server.files[at(p, p.file)] = old


def _signed_message_for_a_signature(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    sums = f"{hashlib.sha256(old).hexdigest()} *{p.file}\n".encode()
    p.server.files[at(p, "SHA256SUMS.gpg")] = p.signer.gpg("--sign", data=b"something else, truly signed\n")
    p.server.files[at(p, "SHA256SUMS")] = sums
    p.server.files[at(p, p.file)] = old


def _signature_of_another_release(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, "SHA256SUMS.gpg")] = p.server.files[f"{p.folder}/release-{OLD}/SHA256SUMS.gpg"]


def _expired_signature(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    sums = p.server.files[at(p, "SHA256SUMS")]
    signature = p.signer.sign(sums, day=NEW, options=("--default-sig-expire", "1d"))
    p.server.files[at(p, "SHA256SUMS.gpg")] = signature


def _image_not_in_the_sums(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    _resign(p, f"{hashlib.sha256(new).hexdigest()} *another.img\n".encode())


def _image_twice_in_the_sums(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    _resign(p, b"".join(f"{hashlib.sha256(x).hexdigest()} *{p.file}\n".encode() for x in (old, new)))


def _short_digest_in_the_sums(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    _resign(p, f"{hashlib.md5(new).hexdigest()} *{p.file}\n".encode())


def _image_in_another_folder_of_the_sums(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    _resign(p, f"{hashlib.sha256(new).hexdigest()} *../{p.file}\n".encode())


def _endless_sums(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.server.files[at(p, "SHA256SUMS")] = b"#" * (2 << 20)


def _sums_of_another_host(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    plain = "http://127.0.0.1:1/SHA256SUMS"
    p.server.answers[at(p, "SHA256SUMS")] = lambda request: request.send_status(302, {"Location": plain})


def _backing_file(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    evil = bytearray(new)
    evil[8:16], evil[16:20] = (0x1000).to_bytes(8, "big"), (11).to_bytes(4, "big")
    p.publish(NEW, bytes(evil))


def _data_file(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    evil = bytearray(new)
    evil[72:80] = (4).to_bytes(8, "big")
    p.publish(NEW, bytes(evil))


def _vast_disk(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    evil = bytearray(new)
    evil[24:32] = (1 << 50).to_bytes(8, "big")
    p.publish(NEW, bytes(evil))


def _raw_disk(p: Publisher, stranger: Signer, old: bytes, new: bytes) -> None:
    p.publish(NEW, bytes(1 << 20))


def _resign(p: Publisher, sums: bytes) -> None:
    p.server.files[at(p, "SHA256SUMS")] = sums
    p.server.files[at(p, "SHA256SUMS.gpg")] = p.signer.sign(sums)


TAMPERING: dict[str, tuple[Tamper, str]] = {
    "one bit of the image": (_altered_image, "altered or cut short"),
    "another image": (_another_image, "altered or cut short"),
    "half of the image": (_short_image, "altered or cut short"),
    "a byte more": (_longer_image, "altered or cut short"),
    "an empty image": (_empty_image, "altered or cut short"),
    "a login page for an image": (_page_for_an_image, "altered or cut short"),
    "the image and its digest": (_altered_sums, "altered after it was signed"),
    "a second digest": (_longer_sums, "altered after it was signed"),
    "another's signature": (_signed_by_another, "signed by another key"),
    "two signatures, none by the publisher on these sums": (_signed_by_both, "signed by another key|does not fit"),
    "no signature": (_no_signature, "not there"),
    "an empty signature": (_empty_signature, "no signature that gpgv can check"),
    "junk for a signature": (_junk_signature, "no signature that gpgv can check"),
    "gpgv's own words for a signature": (_status_lines_for_a_signature, "no signature that gpgv can check"),
    "the key for a signature": (_key_for_a_signature, "no signature that gpgv can check"),
    "another text, well signed, for a signature": (_signed_text_for_a_signature, "no signature|does not fit"),
    "another message, well signed, for a signature": (_signed_message_for_a_signature, "no signature|does not fit"),
    "the signature of another release": (_signature_of_another_release, "altered after it was signed"),
    "an expired signature": (_expired_signature, "expired"),
    "sums without the image": (_image_not_in_the_sums, "0 times, and not once"),
    "sums with the image twice": (_image_twice_in_the_sums, "2 times, and not once"),
    "sums with an MD5 digest": (_short_digest_in_the_sums, "0 times, and not once"),
    "sums of another folder": (_image_in_another_folder_of_the_sums, "0 times, and not once"),
    "sums without an end": (_endless_sums, "too much for this file"),
    "a redirect to http": (_sums_of_another_host, "which is not https"),
    "a backing file, well signed": (_backing_file, "backing file"),
    "a data file, well signed": (_data_file, "data lies in another file"),
    "a disk of a petabyte, well signed": (_vast_disk, "a disk of"),
    "a raw disk, well signed": (_raw_disk, "does not begin as a qcow2 file does"),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_no_tampered_image_is_read_by_qemu_or_cached(
    site: Site, stranger: Signer, images: tuple[bytes, bytes], what: str
) -> None:
    tamper, why = TAMPERING[what]
    site.publisher.publish(OLD, images[0])
    site.publisher.publish(NEW, images[1])
    tamper(site.publisher, stranger, *images)
    with pytest.raises(LabError, match=why):
        site.pull()
    assert site.nothing_was_read(), site.calls
    assert not list(store.downloads().glob("*.part*"))


def test_there_are_enough_kinds_of_tampering() -> None:
    assert len(TAMPERING) >= 25


def test_after_tampering_the_right_image_is_taken(site: Site, stranger: Signer, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    _altered_image(site.publisher, stranger, *images)
    with pytest.raises(ImageError):
        site.pull()
    site.publisher.publish(NEW, images[1])
    assert site.pull().read_bytes() == images[1]


def test_a_release_older_than_one_that_was_seen_is_refused(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(OLD, images[0])
    site.publisher.publish(NEW, images[1])
    new = site.pull()
    site.publisher.publish(OLD, images[0])
    with pytest.raises(ImageError, match=r"signed on 2026-01-10, and is older .* this host had before \(2026-02-20\)"):
        site.pull()
    assert [new.parent.name] == site.cached
    # Even when the cache was emptied in between.
    store.remove_tree(store.cache_home())
    with pytest.raises(ImageError, match="older"):
        site.pull()
    assert site.nothing_was_read()


def test_a_release_older_than_the_pinned_one_is_refused(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(OLD, images[0])
    site.publisher.catalogue(site.folder, pin=pin(images[1], NEW, "2026-02-20T00:00:00Z"))
    with pytest.raises(ImageError, match=r"older than the one that the catalogue pins \(2026-02-20\)"):
        site.pull()
    assert site.nothing_was_read()


def test_an_old_release_in_the_pinned_one_s_folder_is_refused(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(OLD, images[0])
    files = site.publisher.server.files
    for name in list(files):
        files[name.replace(f"release-{OLD}", f"release-{NEW}")] = files[name]
    site.publisher.catalogue(site.folder, pin=pin(images[1], NEW, "2026-02-20T00:00:00Z"))
    with pytest.raises(ImageError, match="older than the one that the catalogue pins"):
        site.pull()
    assert site.nothing_was_read()


def test_another_image_than_the_pinned_one_is_refused_though_it_is_signed(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    site.publisher.publish(NEW, images[1])
    site.publisher.catalogue(site.folder, pin=pin(images[0], NEW))
    with pytest.raises(ImageError, match="signed another image than the one pinned"):
        site.pull()
    assert site.nothing_was_read()


def test_an_unsigned_image_that_is_not_the_pinned_one_is_refused(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(OLD, images[1])
    site.publisher.catalogue(site.folder, signed=False, pin=pin(images[0]))
    with pytest.raises(ImageError, match="altered or cut short"):
        site.pull()
    assert site.nothing_was_read()


def test_an_own_image_with_another_digest_is_refused(site: Site, images: tuple[bytes, bytes]) -> None:
    (site.folder / "own.img").write_bytes(images[0])
    site.publisher.server.files["own.img"] = images[0]
    wrong = hashlib.sha256(images[1]).hexdigest()
    for place in ("path: own.img", f"url: '{site.publisher.server.url}/own.img'"):
        site.lab(f"{{{place}, sha256: {wrong}, family: debian}}")
        with pytest.raises(ImageError, match="altered or cut short"):
            site.pull()
    assert site.nothing_was_read()


def test_plain_http_is_refused_where_no_digest_says_which_bytes_are_right(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    plain = Server(None)
    try:
        plain.files["own.img"] = images[0]
        site.lab(f"{{url: '{plain.url}/own.img', unverified: true, family: debian}}")
        with pytest.raises(ImageError, match="neither https nor a digest"):
            site.pull()
        assert plain.asked == [] and site.nothing_was_read()
        site.lab(f"{{url: '{plain.url}/own.img', sha256: {hashlib.sha256(images[0]).hexdigest()}, family: debian}}")
        assert site.pull().read_bytes() == images[0]
    finally:
        plain.close()


def test_a_key_whose_fingerprint_is_not_the_catalogue_s_is_refused(
    site: Site, stranger: Signer, images: tuple[bytes, bytes]
) -> None:
    site.publisher.publish(NEW, images[1])
    text = f"fingerprint: {stranger.fingerprint}\norigin: made for a test\n"
    (site.folder / "images" / "keys" / "testix.yaml").write_text(text)
    with pytest.raises(ImageError, match="signed by another key"):
        site.pull()
    assert site.nothing_was_read()


def test_a_signature_with_a_hash_that_can_be_forged_is_refused() -> None:
    fpr = "A" * 40
    line = f"[GNUPG:] GOODSIG {fpr[:16]} me\n[GNUPG:] VALIDSIG {fpr} 2026-01-01 1767225600 0 4 0 1 {{}} {{}} {fpr}\n"
    assert gpgv.judge(line.format("10", "00"), 0, fpr, "sums").made == 1767225600
    for algorithm, kind in (("2", "00"), ("1", "00"), ("3", "00"), ("10", "10"), ("10", "18")):
        with pytest.raises(ImageError, match="proves nothing"):
            gpgv.judge(line.format(algorithm, kind), 0, fpr, "sums")
    with pytest.raises(ImageError, match="another key"):
        gpgv.judge(line.format("10", "00"), 0, "B" * 40, "sums")
    with pytest.raises(ImageError, match="no signature"):
        gpgv.judge(line.format("10", "00"), 2, fpr, "sums")


def test_a_resumed_download_of_other_bytes_is_made_once_more_from_the_beginning(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    site.publisher.publish(NEW, images[1])
    broken, tag = [1], '"same"'

    def answer(request: Request) -> None:
        broken[0] -= 1
        if broken[0] == 0:
            request.send_file(bytes(len(images[1])), etag=tag, stop_after=5000)
        else:
            request.send_file(images[1], etag=tag)

    site.publisher.server.answers[at(site.publisher, site.publisher.file)] = answer
    with pytest.raises(ImageError, match="altered or cut short"):
        site.pull()
    assert site.nothing_was_read()
    assert site.pull().read_bytes() == images[1]


def test_a_cached_image_that_was_altered_is_found_by_verify_and_not_booted(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    site.publisher.publish(NEW, images[1])
    disk = site.pull()
    disk.chmod(0o644)
    disk.write_bytes(images[1][:-1] + b"x")
    with pytest.raises(ImageError, match="altered since it was made"):
        site.pull(refresh=False)
    assert provision.vouched_for(disk.parent, site.folder) == "not the image that its publisher signed"


def test_a_download_that_was_killed_goes_on_with_the_next_command(
    site: Site, images: tuple[bytes, bytes], tmp_path: Path
) -> None:
    big = images[1] + os.urandom(4 << 20)
    site.publisher.publish(NEW, big)
    held = [True]

    def answer(request: Request) -> None:
        if held[0]:
            request.send_file(big, stop_after=2 << 20)
            while held[0]:
                request.wfile.flush()
                __import__("time").sleep(0.02)
        else:
            request.send_file(big)

    site.publisher.server.answers[at(site.publisher, site.publisher.file)] = answer
    argv = [sys.executable, "-m", "kmlab", "image", "pull", "--lab", str(site.folder / "lab.yaml")]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    half = store.downloads() / f"{hashlib.sha256(big).hexdigest()[:32]}.part"
    while not half.exists() or half.stat().st_size < 2 << 20:
        assert process.poll() is None
    process.kill()
    process.wait()
    held[0] = False
    assert site.nothing_was_read()
    assert site.pull().read_bytes() == big
    assert site.publisher.server.asked[-1][1] == f"bytes={2 << 20}-"


# --- sums ------------------------------------------------------------------------------------------------------------


def test_sums_are_read_as_sha256sum_and_sha512sum_write_them() -> None:
    short, long = "a" * 64, "b" * 128
    sums = f"{short} *a.img\n{long}  b.img\nnonsense\n{short} *c d.img\n".encode()
    assert trust.digest_in(sums, "a.img", "x") == short
    assert trust.digest_in(sums, "b.img", "x") == long
    for absent in ("c.img", "d.img", "img", ""):
        with pytest.raises(ImageError, match="0 times"):
            trust.digest_in(sums, absent, "x")


# --- commands --------------------------------------------------------------------------------------------------------


def test_a_release_is_added_by_one_yaml_file_and_nothing_else(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    site.pull()
    later = Publisher(site.publisher.server, site.publisher.signer, "testix", "26.10", "releases/later")
    later.publish("20261031", images[0])
    before = sorted(p for p in site.folder.rglob("*") if p.is_file())
    (site.folder / "images" / "testix-26.10.yaml").write_text(later.entry())
    site.lab("testix-26.10")
    after = sorted(p for p in site.folder.rglob("*") if p.is_file())
    assert [p.name for p in after if p not in before] == ["testix-26.10.yaml"]
    assert "testix-26.10" in catalog.image_names(site.folder)
    assert site.pull().read_bytes() == images[0]


def test_a_built_image_takes_no_digest(site: Site) -> None:
    site.lab("{name: debian-12, unverified: true}")
    with pytest.raises(KmlabError, match="is built here"):
        site.pull()


def test_who_listens_to_nothing_still_gets_the_image(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    lab = load_lab(site.folder / "lab.yaml")
    with World() as world:
        assert provision.catalogue_image(world.host, "testix", lab, site.folder, silent).is_file()
