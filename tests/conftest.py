"""What all tests stand on: folders of their own for state and cache, so that no test sees a person's lab."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.publisher import Authority, Publisher, Server, Signer, disk_image
from tests.watched import Site


@pytest.fixture
def xdg(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new folder with state/ and cache/, its path short: libvirt puts sockets beneath it."""
    folder = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signed the certificate of the suite's servers."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def signer() -> Iterator[Signer]:
    """A publisher's key."""
    made = Signer()
    yield made
    made.close()


@pytest.fixture(scope="session")
def stranger() -> Iterator[Signer]:
    """Somebody else's key, under the publisher's name."""
    made = Signer()
    yield made
    made.close()


@pytest.fixture
def server(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An HTTPS server that this process trusts, and no proxy in between."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "KMLAB_MIRROR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    made = Server(authority.context())
    yield made
    made.close()


@pytest.fixture
def publisher(server: Server, signer: Signer) -> Publisher:
    """A publisher without a release."""
    return Publisher(server, signer)


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
