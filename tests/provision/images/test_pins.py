"""`make images`: pins looked up at a publisher's, and written into the catalogue."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kmlab.config import catalog
from tests.places import REPOSITORY
from tests.publisher import Publisher, Signer

TOOL = REPOSITORY / "tools" / "pins.py"
ARCH = os.uname().machine


def refresh(home: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(TOOL), str(home)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def listing(publisher: Publisher) -> None:
    """The page that a web server makes of the folder of all releases."""
    names = {name.split("/")[2] for name in publisher.server.files if name.count("/") > 2}
    page = "".join(f'<a href="{name}/">{name}/</a>\n' for name in sorted(names))
    publisher.server.files[f"{publisher.folder}/"] = f'<html><a href="../">up</a>{page}</html>'.encode()
    publisher.server.answers[f"{publisher.folder}/"] = lambda request: request.send_status(
        200, body=publisher.server.files[f"{publisher.folder}/"]
    )


def pin(home: Path) -> catalog.Pin | None:
    download = catalog.load_image("testix", home).architectures[ARCH].download
    assert download is not None
    return download.pin


@pytest.fixture
def home(publisher: Publisher, tmp_path: Path) -> Path:
    publisher.publish("20260110", b"old")
    publisher.publish("20260220", b"new")
    publisher.publish("20260220.1", b"newer")
    listing(publisher)
    return publisher.catalogue(tmp_path)


def test_the_newest_release_is_pinned_with_digest_and_time_of_its_signature(home: Path) -> None:
    code, _ = refresh(home)
    found = pin(home)
    assert code == 0 and found is not None
    assert (found.serial, found.digest) == ("20260220.1", hashlib.sha256(b"newer").hexdigest())
    assert found.signed == 1771545600


def test_only_the_pin_s_line_changes(home: Path) -> None:
    path = home / "images" / "testix.yaml"
    before = path.read_text()
    path.write_text(before.replace("pin: null", "pin: null    # by make images") + "# the end\n")
    refresh(home)
    assert (
        re.sub(r"pin: \{.*\}", "pin: null", path.read_text()).replace("    # by make images", "")
        == before + "# the end\n"
    )
    refresh(home)
    assert path.read_text().count("pin:") == 1 and "# by make images" in path.read_text()


def test_no_release_before_the_pinned_one_is_taken(publisher: Publisher, home: Path) -> None:
    refresh(home)
    first = pin(home)
    for name in [name for name in publisher.server.files if "20260220" in name]:
        del publisher.server.files[name]
    listing(publisher)
    assert refresh(home)[0] == 0
    assert pin(home) == first


def test_what_a_stranger_signed_is_not_pinned(publisher: Publisher, home: Path, stranger: Signer) -> None:
    folder = f"{publisher.folder}/release-20260220.1"
    publisher.server.files[f"{folder}/SHA256SUMS.gpg"] = stranger.sign(publisher.server.files[f"{folder}/SHA256SUMS"])
    code, said = refresh(home)
    assert code == 1 and "signed by another key" in said
    assert pin(home) is None


def test_of_a_publisher_that_signs_nothing_the_digest_is_pinned(publisher: Publisher, home: Path) -> None:
    publisher.catalogue(home, signed=False)
    assert refresh(home)[0] == 0
    found = pin(home)
    assert found is not None and found.digest == hashlib.sha256(b"newer").hexdigest() and found.signed is None


def test_every_entry_of_the_catalogue_has_a_line_for_its_pin(tmp_path: Path) -> None:
    """As the tool would write it; kmlab's own files are copied."""
    from tools import pins

    for name in catalog.image_names():
        image = catalog.load_image(name)
        if image.publisher is None:
            continue
        (tmp_path / "images").mkdir(exist_ok=True)
        copy = tmp_path / "images" / f"{name}.yaml"
        copy.write_text((TOOL.parents[1] / "images" / f"{name}.yaml").read_text())
        for number, arch in enumerate(image.architectures):
            wanted = catalog.Pin(serial=f"2026010{number}", digest=str(number) * 128, signed=1771545600 + number)
            pins.write(copy, arch, wanted)
        for number, arch in enumerate(image.architectures):
            found = catalog.load_image(name, tmp_path).architectures[arch].download
            assert found is not None and found.pin is not None and found.pin.serial == f"2026010{number}"
