"""Test published images and the user's own: from a local HTTPS server, verified, into the cache."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.errors import ConfigError, ImageError, KmlabError, LabError
from kmlab.common.events import Deadline, silent
from kmlab.config import catalog
from kmlab.config.lab import load_lab
from kmlab.host.process import locks
from kmlab.provision import cache, lifecycle
from kmlab.provision.images import published_image, trust
from kmlab.testing import World
from tests.publisher import Publisher, Request, Server, described
from tests.watched import NEW, OLD, Site, at, pin

HOST = os.uname().machine


def test_a_signed_release_is_accepted_and_stored_with_its_signature(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    disk = site.pull()
    assert disk.read_bytes() == images[1]
    assert disk.stat().st_mode & 0o777 == 0o444
    about = described(disk.parent / "image.json")
    assert about["digest"] == hashlib.sha256(images[1]).hexdigest()
    assert about["virtual_size"] == str(16 << 20)
    assert site.publisher.signer.fingerprint in str(about["by"])
    assert published_image.check_signature(disk.parent, site.folder) is None
    assert not list(paths.downloads().glob("*.part*"))


def test_a_cached_image_does_not_contact_the_publisher(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    disk = site.pull(refresh=False)
    before = list(site.publisher.server.asked)
    assert site.pull(refresh=False) == disk
    assert site.publisher.server.asked == before


def test_a_pull_fetches_a_newer_release_and_keeps_the_old_one_for_its_bases(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    site.publisher.publish(OLD, images[0])
    old = site.pull()
    site.publisher.publish(NEW, images[1])
    assert site.pull(refresh=False) == old
    assert site.pull().read_bytes() == images[1]
    assert old.read_bytes() == images[0]


def test_a_pinned_release_comes_from_its_dated_folder(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(OLD, images[0])
    site.publisher.publish(NEW, images[1])
    site.publisher.catalogue(site.folder, pin=pin(images[0]))
    assert site.pull().read_bytes() == images[0]
    assert all("release-20260110/" in path for path, _ in site.publisher.server.asked)


def test_if_the_pinned_release_is_missing_a_newer_one_is_used_with_a_note(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    site.publisher.publish(NEW, images[1])
    site.publisher.catalogue(site.folder, pin=pin(images[0]))
    assert site.pull().read_bytes() == images[1]
    assert any("release 20260110 is no longer available" in note for note in site.notes)


def test_an_unsigned_image_is_verified_by_the_pinned_digest(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(OLD, images[0])
    site.publisher.catalogue(site.folder, signed=False, pin=pin(images[0]))
    assert site.pull().read_bytes() == images[0]
    assert [path.rpartition("/")[2] for path, _ in site.publisher.server.asked] == [site.publisher.file]


def test_an_unsigned_image_whose_release_has_left_the_server_needs_another_digest(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    site.publisher.publish(NEW, images[1])
    site.publisher.catalogue(site.folder, signed=False, pin=pin(images[0]))
    with pytest.raises(ImageError, match=r"the pinned release is not on its server \(.*not found \(404\)\)") as error:
        site.pull()
    assert error.value.hint is not None and "make images" in error.value.hint
    assert site.nothing_was_read()


def test_an_unsigned_image_is_verified_by_a_digest_in_lab_yaml_of_either_kind(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    site.publisher.publish(OLD, images[0])
    site.publisher.catalogue(site.folder, signed=False)
    for kind in ("sha256", "sha512"):
        site.lab(f"{{name: testix, serial: '{OLD}', digest: {hashlib.new(kind, images[0]).hexdigest()}}}")
        assert site.pull().read_bytes() == images[0]


def test_an_unsigned_image_with_unverified_is_accepted_with_a_note(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    site.publisher.catalogue(site.folder, signed=False)
    with pytest.raises(ImageError, match="signs nothing") as caught:
        site.pull()
    assert caught.value.hint is not None and "unverified: true" in caught.value.hint and site.nothing_was_read()
    site.lab("{name: testix, unverified: true}")
    assert site.pull().read_bytes() == images[1]
    assert any("is not verified" in note for note in site.notes)


def test_the_user_s_own_image_by_url(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.server.files["own.img"] = images[0]
    url = f"{site.publisher.server.url}/own.img"
    site.lab(f"{{url: '{url}', sha256: {hashlib.sha256(images[0]).hexdigest()}, family: debian}}")
    assert site.pull().read_bytes() == images[0]
    site.lab(f"{{url: '{url}', unverified: true, family: debian}}")
    assert site.pull(refresh=False).read_bytes() == images[0]
    site.publisher.server.files["own.img"] = images[1]
    assert site.pull(refresh=False).read_bytes() == images[0]
    assert site.pull().read_bytes() == images[1]
    assert any("is not verified" in note for note in site.notes)


def test_the_user_s_own_image_by_path_is_copied_again_when_it_changes(site: Site, images: tuple[bytes, bytes]) -> None:
    own = site.folder / "own.img"
    own.write_bytes(images[0])
    site.lab("{path: own.img, family: ubuntu}")
    first = site.pull(refresh=False)
    assert first.read_bytes() == images[0] and own.exists()
    assert site.pull(refresh=False) == first
    own.write_bytes(images[1])
    second = site.pull(refresh=False)
    assert second.read_bytes() == images[1] and first.read_bytes() == images[0]


def test_a_raw_disk_is_accepted_only_with_a_digest(site: Site) -> None:
    raw = os.urandom(65536) + bytes(1 << 20)
    (site.folder / "own.raw").write_bytes(raw)
    site.lab("{path: own.raw, family: debian}")
    with pytest.raises(ImageError, match="it is not a qcow2 file"):
        site.pull()
    assert site.nothing_was_read()
    site.lab(f"{{path: own.raw, sha256: {hashlib.sha256(raw).hexdigest()}, family: debian}}")
    disk = site.pull()
    assert disk.read_bytes()[:4] == b"QFI\xfb"
    assert "convert -f raw" in site.calls.read_text()


def test_an_own_image_needs_a_family(site: Site, images: tuple[bytes, bytes]) -> None:
    (site.folder / "own.img").write_bytes(images[0])
    site.lab("{path: own.img}")
    with pytest.raises(ConfigError, match=r"lab\.yaml:3: an image of your own needs a family"):
        site.pull()
    (site.folder / "lab.yaml").write_text("name: t\nguests:\n  g: {image: {path: own.img}, recipe: debian}\n")
    assert site.pull().read_bytes() == images[0]


@pytest.mark.parametrize("where", ["environment", "lab.yaml"])
def test_a_mirror_replaces_the_publisher_and_is_not_trusted_more(
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
    with pytest.raises(ImageError, match="changed after it was signed"):
        site.pull()


def test_plain_http_is_refused_without_a_digest(site: Site, images: tuple[bytes, bytes]) -> None:
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


def test_a_killed_download_is_resumed_by_the_next_command(
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
                time.sleep(0.02)
        else:
            request.send_file(big)

    site.publisher.server.answers[at(site.publisher, site.publisher.file)] = answer
    argv = [sys.executable, "-m", "kmlab", "image", "pull", "--lab", str(site.folder / "lab.yaml")]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    half = paths.downloads() / f"{hashlib.sha256(big).hexdigest()[:32]}.part"
    while not half.exists() or half.stat().st_size < 2 << 20:
        assert process.poll() is None
    process.kill()
    process.wait()
    held[0] = False
    assert site.nothing_was_read()
    assert site.pull().read_bytes() == big
    assert site.publisher.server.asked[-1][1] == f"bytes={2 << 20}-"


# --- sums ------------------------------------------------------------------------------------------------------------


def test_checksum_files_of_sha256sum_and_sha512sum_are_read() -> None:
    short, long = "a" * 64, "b" * 128
    sums = f"{short} *a.img\n{long}  b.img\nnonsense\n{short} *c d.img\n".encode()
    assert trust.digest_in(sums, "a.img", "x") == short
    assert trust.digest_in(sums, "b.img", "x") == long
    for absent in ("c.img", "d.img", "img", ""):
        with pytest.raises(ImageError, match="0 times"):
            trust.digest_in(sums, absent, "x")


def test_the_list_shows_how_an_image_is_verified_and_its_own_size_only(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    site.publisher.catalogue(site.folder, pin=pin(images[1], NEW))
    (site.folder / "images" / f"testix-{HOST}.yaml").write_text(site.publisher.entry(signed=False))
    site.pull()
    found = {image.name: image for image in cache.list_images(site.folder)}
    assert (found["testix"].trust, found["testix"].serial) == ("signature", NEW)
    assert found["testix"].cached > 0 and found[f"testix-{HOST}"].cached == 0
    assert (found[f"testix-{HOST}"].trust, found["debian-12"].trust) == ("nothing", "packages")


def test_prune_removes_interrupted_downloads_and_unused_images(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    site.pull()
    (paths.downloads() / "abc.part").write_bytes(bytes(5000))
    removed, freed = cache.prune()
    assert len(removed) == 1 and freed >= 5000
    assert site.cached == [] and not list(paths.downloads().glob("*.part"))


def test_prune_removes_the_indexes_of_archives_unless_they_are_in_use(site: Site, images: tuple[bytes, bytes]) -> None:
    for name in ("idle", "asked"):
        paths.make_folder(paths.archives() / name)
        (paths.archives() / name / "list").write_bytes(bytes(9000))
    with locks.held(paths.work() / "archive-asked.lock", "x", silent, Deadline(5)):
        removed, freed = cache.prune()
    assert removed == ["archives/idle"] and freed >= 9000
    assert [folder.name for folder in paths.archives().iterdir()] == ["asked"]


def test_a_download_that_fills_the_disk_is_one_clear_error_and_frees_the_space(
    site: Site, images: tuple[bytes, bytes]
) -> None:
    site.publisher.publish(NEW, images[1])
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(images[1]) // 2, hard))
    try:
        with pytest.raises(LabError, match="File too large") as caught:
            site.pull()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert caught.value.hint is not None and "XDG_CACHE_HOME" in caught.value.hint
    assert site.cached == [] and not [p for p in paths.downloads().iterdir() if p.suffix != ".lock"]
    assert site.pull().read_bytes() == images[1]


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


def test_a_built_image_accepts_no_digest(site: Site) -> None:
    site.lab("{name: debian-12, unverified: true}")
    with pytest.raises(KmlabError, match="is built on this host"):
        site.pull()


def test_an_image_is_fetched_without_a_listener(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    lab = load_lab(site.folder / "lab.yaml")
    with World() as world:
        assert lifecycle.catalogue_image(world.host, "testix", lab, site.folder, silent).is_file()
