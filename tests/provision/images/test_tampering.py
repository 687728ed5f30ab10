"""Some forty ways of tampering with a published image, none of which gets through.

The door to QEMU's tools is watched: of an image that was not verified they never see a byte.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import pytest

from kmlab.common import paths
from kmlab.common.errors import ImageError, LabError
from kmlab.host.net import gpgv
from kmlab.provision.images import published_image
from tests.publisher import Publisher, Request, Signer
from tests.watched import NEW, OLD, Site, at, pin

Tamper = Callable[[Publisher, Signer, bytes, bytes], None]


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
    "one bit of the image": (_altered_image, "changed or truncated"),
    "another image": (_another_image, "changed or truncated"),
    "half of the image": (_short_image, "changed or truncated"),
    "a byte more": (_longer_image, "changed or truncated"),
    "an empty image": (_empty_image, "changed or truncated"),
    "a login page for an image": (_page_for_an_image, "changed or truncated"),
    "the image and its digest": (_altered_sums, "changed after it was signed"),
    "a second digest": (_longer_sums, "changed after it was signed"),
    "another's signature": (_signed_by_another, "signed by another key"),
    "two signatures, none by the publisher on these sums": (_signed_by_both, "signed by another key|does not match"),
    "no signature": (_no_signature, "not found"),
    "an empty signature": (_empty_signature, "no signature that gpgv can check"),
    "junk for a signature": (_junk_signature, "no signature that gpgv can check"),
    "gpgv's own words for a signature": (_status_lines_for_a_signature, "no signature that gpgv can check"),
    "the key for a signature": (_key_for_a_signature, "no signature that gpgv can check"),
    "another text, well signed, for a signature": (_signed_text_for_a_signature, "no signature|does not match"),
    "another message, well signed, for a signature": (_signed_message_for_a_signature, "no signature|does not match"),
    "the signature of another release": (_signature_of_another_release, "changed after it was signed"),
    "an expired signature": (_expired_signature, "expired"),
    "sums without the image": (_image_not_in_the_sums, "0 times; exactly one"),
    "sums with the image twice": (_image_twice_in_the_sums, "2 times; exactly one"),
    "sums with an MD5 digest": (_short_digest_in_the_sums, "0 times; exactly one"),
    "sums of another folder": (_image_in_another_folder_of_the_sums, "0 times; exactly one"),
    "sums without an end": (_endless_sums, "exceeds the limit"),
    "a redirect to http": (_sums_of_another_host, "which is not https"),
    "a backing file, well signed": (_backing_file, "backing file"),
    "a data file, well signed": (_data_file, "data is in another file"),
    "a disk of a petabyte, well signed": (_vast_disk, "its disk has"),
    "a raw disk, well signed": (_raw_disk, "it is not a qcow2 file"),
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
    assert not list(paths.downloads().glob("*.part*"))


def test_there_are_enough_kinds_of_tampering() -> None:
    assert len(TAMPERING) >= 25


def test_after_tampering_the_right_image_is_accepted(site: Site, stranger: Signer, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    _altered_image(site.publisher, stranger, *images)
    with pytest.raises(ImageError):
        site.pull()
    site.publisher.publish(NEW, images[1])
    assert site.pull().read_bytes() == images[1]


def test_a_release_older_than_an_earlier_one_is_refused(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(OLD, images[0])
    site.publisher.publish(NEW, images[1])
    new = site.pull()
    site.publisher.publish(OLD, images[0])
    with pytest.raises(
        ImageError, match=r"signed on 2026-01-10, which is older .* this host had before \(2026-02-20\)"
    ):
        site.pull()
    assert [new.parent.name] == site.cached
    # Even when the cache was emptied in between.
    paths.remove_tree(paths.cache_home())
    with pytest.raises(ImageError, match="older"):
        site.pull()
    assert site.nothing_was_read()


def test_an_older_pin_does_not_forget_the_earlier_release(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(OLD, images[0])
    site.publisher.publish(NEW, images[1])
    site.pull()
    site.publisher.catalogue(site.folder, pin=pin(images[0]))
    assert site.pull().read_bytes() == images[0]
    site.publisher.catalogue(site.folder)
    site.publisher.publish(OLD, images[0])
    with pytest.raises(ImageError, match="this host had before"):
        site.pull()


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


def test_another_image_than_the_pinned_one_is_refused_even_if_it_is_signed(
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
    with pytest.raises(ImageError, match="changed or truncated"):
        site.pull()
    assert site.nothing_was_read()


def test_an_own_image_with_another_digest_is_refused(site: Site, images: tuple[bytes, bytes]) -> None:
    (site.folder / "own.img").write_bytes(images[0])
    site.publisher.server.files["own.img"] = images[0]
    wrong = hashlib.sha256(images[1]).hexdigest()
    for place in ("path: own.img", f"url: '{site.publisher.server.url}/own.img'"):
        site.lab(f"{{{place}, sha256: {wrong}, family: debian}}")
        with pytest.raises(ImageError, match="changed or truncated"):
            site.pull()
    assert site.nothing_was_read()


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
    assert gpgv.parse_status(line.format("10", "00"), 0, fpr, "sums").made == 1767225600
    for algorithm, kind in (("2", "00"), ("1", "00"), ("3", "00"), ("10", "10"), ("10", "18")):
        with pytest.raises(ImageError, match="insecure hash"):
            gpgv.parse_status(line.format(algorithm, kind), 0, fpr, "sums")
    with pytest.raises(ImageError, match="another key"):
        gpgv.parse_status(line.format("10", "00"), 0, "B" * 40, "sums")
    with pytest.raises(ImageError, match="no signature"):
        gpgv.parse_status(line.format("10", "00"), 2, fpr, "sums")


def test_a_resumed_download_of_another_file_restarts_from_the_beginning(
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
    with pytest.raises(ImageError, match="changed or truncated"):
        site.pull()
    assert site.nothing_was_read()
    assert site.pull().read_bytes() == images[1]


def test_a_changed_cached_image_is_found_by_verify_and_not_booted(site: Site, images: tuple[bytes, bytes]) -> None:
    site.publisher.publish(NEW, images[1])
    disk = site.pull()
    disk.chmod(0o644)
    disk.write_bytes(images[1][:-1] + b"x")
    with pytest.raises(ImageError, match="changed after it was made"):
        site.pull(refresh=False)
    assert published_image.check_signature(disk.parent, site.folder) == "not the image that its publisher signed"
